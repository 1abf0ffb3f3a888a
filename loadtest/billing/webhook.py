"""The receiver of orders fails in every way, and ten thousand accounts run dry in the same second: who adds money meanwhile does
not notice, and every order arrives once the receiver is well."""

import collections
import dataclasses
import pathlib
import re
import time

import dry
from fleet import fetch
from judging import add_ledger, add_orders, describe, percentile
from ledger import MICROS, OrdersJudged, Spending, judge_orders
from load import Load, audit
from nodes import EMBEDDED, Nodes
from orders import Orders
from receiver import MODES
from report import Report
from scratch import Scratch

SHARDS = 2
RATE = 300
QUIET_MODE = "well"
BURST_MODE = "fail"  # It answers at once, so all of them are tried again most often.
BURST = 10_000
TRICKLE = 20  # Accounts that run dry in each second of every other mode.
FIRST_ACCOUNT = 1_000_000
PREPARE_SECONDS = 8
HEALED_SECONDS = 60.0  # The longest pause between two tries is 30 s.
GIVEN_UP_SECONDS = 120.0
RATIO = 3.0  # Of the 99th percentile while the receiver is ill to that while it is well.
UNMOVED_MS = 10.0  # Nobody minds a multiple of next to nothing.

PHASE_NAMES = {
    "fail": "answers 500",
    "hang": "hangs",
    "slow": "is slow",
    "garbage": "answers garbage",
    "refuse": "refuses connections",
    "healing": "well again",
}


@dataclasses.dataclass
class Phase:
    mode: str
    begin: float
    end: float


def webhook(binary: pathlib.Path, scratch: Scratch, report: Report, seed: int, quick: bool) -> None:
    seconds = 8.0 if quick else 20.0
    with Orders(scratch) as orders, Nodes(binary, scratch, "a", EMBEDDED, SHARDS, orders.address) as nodes:
        with Load(nodes.addresses, SHARDS, seed, rate=RATE) as load:
            phases = plan(seconds)
            accounts = dry.make(nodes.addresses[0], FIRST_ACCOUNT, ends(phases))
            if time.time() > phases[0].begin:
                raise SystemExit(f"{len(accounts)} accounts are not made within {PREPARE_SECONDS} s")
            for phase in phases:
                time.sleep(max(0.0, phase.begin - time.time()))
                orders.set_mode(phase.mode)
                load.check()
            time.sleep(max(0.0, phases[-1].end - time.time()))
            healed = time.time()
            orders.set_mode("well")
            wait_for_orders(nodes)
            phases.append(Phase("healing", healed, time.time()))
            # A second time, as a machine is not as quick at one time as at another.
            time.sleep(seconds)
            phases.append(Phase(QUIET_MODE, phases[-1].end, time.time()))
        judged = judge_orders(accounts, orders.arrivals(), max(one.depletes_at for one in accounts))
        add_phases(report, phases, load)
        add_burst(report, accounts)
        add_healing(report, judged, orders, healed)
        add_orders(report, "webhook ill", judged, [])
        add_ledger(report, "R16", "webhook ill", load, audit(load, nodes.addresses))


def plan(seconds: float) -> list[Phase]:
    begin = time.time() + PREPARE_SECONDS
    return [Phase(mode, begin + number * seconds, begin + (number + 1) * seconds) for number, mode in enumerate(MODES)]


def ends(phases: list[Phase]) -> list[int]:
    """When accounts are to run dry: some in each second of each mode, ten thousand in one."""
    found = []
    for phase in phases:
        if phase.mode != QUIET_MODE:
            count = int(TRICKLE * (phase.end - phase.begin))
            found += [int((phase.begin + place / TRICKLE) * MICROS) for place in range(count)]
        if phase.mode == BURST_MODE:
            # Within the middle of a second of the clock.
            second = int(phase.begin + (phase.end - phase.begin) / 4) + 1
            found += [second * MICROS + 200_000 + place * 600_000 // BURST for place in range(BURST)]
    return found


def wait_for_orders(nodes: Nodes) -> None:
    """The node is asked whether any are left: to look through all orders would cost this process, which is measuring."""
    deadline = time.monotonic() + GIVEN_UP_SECONDS
    while outstanding(nodes) > 0 and time.monotonic() < deadline:
        time.sleep(0.5)


def outstanding(nodes: Nodes) -> int:
    text = fetch(f"http://{nodes.addresses[0]}/metrics").decode()
    found = re.search(r"^forefront_billing_orders_outstanding (\d+)", text, re.MULTILINE)
    if not found:
        raise SystemExit("the node does not tell how many orders are outstanding")
    return int(found.group(1))


def add_phases(report: Report, phases: list[Phase], load: Load) -> None:
    done = list(load.done)

    def p99_ms(*names: str) -> tuple[float, int]:
        spans = [(phase.begin, phase.end) for phase in phases if phase.mode in names]
        times = [one.answered - one.sent for one in done if any(begin <= one.sent < end for begin, end in spans)]
        return percentile(times, 0.99) * 1000, len(times)

    quiet, count = p99_ms(QUIET_MODE)
    report.add("R16", "webhook well: 99 % of operations within", "", f"{quiet:.1f} ms of {count}", None)
    bound = max(RATIO * quiet, UNMOVED_MS)
    for mode, name in PHASE_NAMES.items():
        p99, count = p99_ms(mode)
        figure = f"{p99:.1f} ms of {count}, {p99 / quiet:.2f} x"
        told = f"<= {bound:.0f} ms"
        report.add("R16", f"webhook {name}: 99 % of operations within", told, figure, count > 0 and p99 <= bound)
    failures = load.failures_between(phases[0].begin, phases[-1].end)
    report.add("R16", "webhook ill: tries of operations that failed", "0", describe(failures), not failures)


def add_burst(report: Report, accounts: list[Spending]) -> None:
    by_second = collections.Counter(one.depletes_at // MICROS for one in accounts)
    most = max(by_second.values())
    report.add("R16", "webhook ill: accounts that ran dry in the same second", f">= {BURST}", f"{most}", most >= BURST)


def add_healing(report: Report, judged: OrdersJudged, orders: Orders, healed: float) -> None:
    """How long after the receiver was well the last order arrived that had not arrived before."""
    firsts: dict[tuple[int, int], int] = {}
    for one in orders.arrivals():
        if one.status == 200:
            firsts.setdefault((one.account, one.version), one.at)
    late = [at for at in firsts.values() if at > healed * MICROS]
    took = max(late, default=int(healed * MICROS)) / MICROS - healed
    figure = f"{took:.1f} s for {len(late)} of {len(firsts)}"
    good = not judged.missed and took <= HEALED_SECONDS
    report.add("R16", "webhook well again: every order delivered after", f"<= {HEALED_SECONDS:g} s", figure, good)
