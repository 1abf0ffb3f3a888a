"""Billing nodes die or freeze while accounts run dry: the other takes over, nothing is lost, every order leaves, and none by a
node whose lease is gone."""

import math
import pathlib
import random
import time

from judging import add_ledger, add_orders, add_times, describe, show, spread
from ledger import MICROS, judge_orders, without_lease
from load import Load, audit
from nodes import Node, Nodes, postgres
from orders import Orders
from postgres import Single, ask
from report import Report
from scratch import Scratch

SHARDS = 2
LEASE_SECONDS = 4.0
BOUND_SECONDS = 5.0
GIVEN_UP_SECONDS = 30.0
SPENDING = 150
LOG_SLACK_SECONDS = 0.1  # Between what a node does and what its log tells.
SETTLE_SECONDS = 3.0
DELIVERED_SECONDS = 30.0


def nodes(binary: pathlib.Path, scratch: Scratch, report: Report, seed: int, quick: bool) -> None:
    """Two replica sets of one server each, so that nothing but the nodes is at stake."""
    times = 1 if quick else 5
    sets = [Single(scratch, name) for name in ("pg-one", "pg-two")]
    journal = postgres(*(one.connection for one in sets))
    dice = random.Random(f"nodes {seed}")
    with Orders(scratch) as orders, Nodes(binary, scratch, "ab", journal, SHARDS, orders.address) as fleet:
        with Load(fleet.addresses, SHARDS, seed, rate=250, tellers=24, spending=SPENDING) as load:
            time.sleep(SETTLE_SECONDS)
            killed, frozen = [], []
            for _ in range(times):
                killed.append(kill(fleet, load, dice))
                frozen.append(freeze(fleet, load, dice))
        for what, found in (("node killed", killed), ("node frozen for longer than its lease", frozen)):
            add_times(report, "R18", f"{what}: first write after (min / median / max)", BOUND_SECONDS, found)
        add_ledger(report, "R18", "nodes lost", load, audit(load, fleet.addresses))
        add_all_orders(report, fleet, load, orders)


def kill(fleet: Nodes, load: Load, dice: random.Random) -> float:
    node, shards = victim(fleet, dice)
    at = node.kill()
    took = taken_over(load, at, shards, f"{node.name} killed")
    node.start()
    node.wait_until_able()
    time.sleep(SETTLE_SECONDS)
    return took


def freeze(fleet: Nodes, load: Load, dice: random.Random) -> float:
    node, shards = victim(fleet, dice)
    at = node.freeze()
    took = taken_over(load, at, shards, f"{node.name} frozen")
    # Others own its shards by now, and it does not know.
    time.sleep(max(0.0, at + LEASE_SECONDS + dice.uniform(1.5, 4) - time.time()))
    node.thaw()
    node.wait_until_able()
    time.sleep(SETTLE_SECONDS)
    return took


def victim(fleet: Nodes, dice: random.Random) -> tuple[Node, list[int]]:
    time.sleep(dice.uniform(0, LEASE_SECONDS / 2))
    return fleet.owner_of_most()


def taken_over(load: Load, at: float, shards: list[int], what: str) -> float:
    waits = load.wait_for_writes(at, shards, GIVEN_UP_SECONDS)
    told = " ".join(f"shard {shard} {seconds:.2f} s" for shard, seconds in (waits or {}).items())
    print(f"    {what}: {told or 'no writes'}; {describe(load.failures_between(at, time.time()))}", flush=True)
    return max(waits.values()) if waits else math.inf


def add_all_orders(report: Report, fleet: Nodes, load: Load, orders: Orders) -> None:
    """Once the last account has run dry."""
    last = max((version.depletes_at for one in load.spending for version in one.versions.values()), default=0)
    time.sleep(max(0.0, last / MICROS - time.time()))

    def judge():
        return judge_orders(load.spending, orders.arrivals(), last)

    deadline = time.monotonic() + DELIVERED_SECONDS
    while judge().missed and time.monotonic() < deadline:
        time.sleep(0.5)
    judged = judge()
    stray = without_lease(orders.arrivals(), fleet.taken(), SHARDS, int(LOG_SLACK_SECONDS * MICROS))
    add_orders(report, "nodes lost", judged, stray)
    raced = sum(version.raced for one in load.spending for version in one.versions.values())
    report.add("R16", "nodes lost: versions whose order may have been cancelled", "", f"{raced}", None)
    delays = [delay / 1000 for delay in judged.delays_us]
    report.add("R16", "nodes lost: end of money to order (min / median / max)", "", spread(delays, "ms"), None)
    open_still = [text for one in load.spending if (text := still_open(fleet, one.account, one.version))]
    report.add("R16", "nodes lost: accounts not stopped in the end", "0", f"{len(open_still)}", not open_still)
    show("nodes lost: not stopped", open_still)


def still_open(fleet: Nodes, account: int, version: int) -> str:
    told = ask(f"http://{fleet.addresses[0]}/billing/v1/accounts/{account}")
    good = told and told["state"] == "stopped" and told["version"] == version and told["overrun"] is not None
    return "" if good else f"account {account} at version {version}: {told}"
