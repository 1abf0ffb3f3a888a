"""The master of the journal dies, or is moved by hand; a node of billing gives its shards away."""

import dataclasses
import json
import math
import pathlib
import random
import time
import urllib.error
import urllib.request

from delivery import add_delivery
from judging import add_ledger, add_times, describe
from load import Load, audit
from nodes import Node, Nodes, postgres
from orders import Orders
from postgres import Patroni
from report import Report
from scratch import Scratch, wait_until

SHARDS = 2
SPENDING = 60
SHORT = {"ttl": 20, "loop_wait": 5, "retry_timeout": 5}
DEFAULTS = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}
SHORT_SECONDS, DEFAULTS_SECONDS = 25.0, 40.0
GIVEN_UP_SECONDS = 90.0
TAKE_OVER_SECONDS = 5.0
HAND_OVER_TRIES = 5


@dataclasses.dataclass
class Outage:
    """Seconds from an instant until writes go on, the longest time without one from there to the end of it, and what was asked
    in vain meanwhile. Of the shard that took longest."""

    writes_after: float
    longest_gap: float
    failures: dict[str, int]


def leader(binary: pathlib.Path, scratch: Scratch, report: Report, seed: int, quick: bool) -> None:
    fast, slow = (3, 1) if quick else (20, 3)
    patroni = Patroni(scratch, **SHORT)
    dice = random.Random(f"leader {seed}")
    journal = postgres(patroni.connection)
    with Orders(scratch) as orders, Nodes(binary, scratch, "ab", journal, SHARDS, orders.address) as nodes:
        with Load(nodes.addresses, SHARDS, seed, spending=SPENDING) as load:
            add_kills(report, patroni, load, dice, fast, SHORT, SHORT_SECONDS)
            patroni.configure(**DEFAULTS)
            add_kills(report, patroni, load, dice, slow, DEFAULTS, DEFAULTS_SECONDS)
        add_ledger(report, "R19", "master killed", load, audit(load, nodes.addresses))
        add_delivery(report, "master killed", nodes, load.spending, orders)


def add_kills(
    report: Report, patroni: Patroni, load: Load, dice: random.Random, count: int, timing: dict[str, int], bound: float
) -> None:
    what = f"master killed, ttl {timing['ttl']}"
    outages = []
    for number in range(count):
        # At any moment of Patroni's turn, with some load before.
        time.sleep(1 + dice.uniform(0, timing["loop_wait"]))
        outage = kill_leader(patroni, load)
        outages.append(outage)
        print(f"    {what}, {number + 1}: {outage.writes_after:.1f} s, {describe(outage.failures)}", flush=True)
    add_times(report, "R19", f"{what}: writes go on (min / median / max)", bound, [one.writes_after for one in outages])
    add_times(report, "R19", f"{what}: longest time without a write", bound, [one.longest_gap for one in outages])


def kill_leader(patroni: Patroni, load: Load) -> Outage:
    """Returns once three members are there again, one of them a synchronous standby."""
    name = patroni.leader()
    at = patroni.members[name].kill()
    shards = list(range(SHARDS))
    waits = load.wait_for_writes(at, shards, GIVEN_UP_SECONDS)
    # Not before: it would lead again, as its key in etcd is still its own.
    patroni.members[name].start()
    patroni.wait_until_whole()
    return outage_of(load, at, waits, shards)


def outage_of(load: Load, at: float, waits: dict[int, float] | None, shards: list[int]) -> Outage:
    until = time.time()
    gap = max(load.longest_gap(at, until, shard) for shard in shards)
    return Outage(max(waits.values()) if waits else math.inf, gap, load.failures_between(at, until))


# --------------------------------------------------------------------------------------------------------------- by hand


def switchover(binary: pathlib.Path, scratch: Scratch, report: Report, seed: int, quick: bool) -> None:
    times = 1 if quick else 3
    patroni = Patroni(scratch, **SHORT)
    with Nodes(binary, scratch, "ab", postgres(patroni.connection), SHARDS) as nodes:
        with Load(nodes.addresses, SHARDS, seed) as load:
            settle(load)
            switched = [under_load(load, lambda: switch(patroni)) for _ in range(times)]
            given, ended = [], {"all": [], "one": []}
            for _ in range(times):
                ended["all"].append(under_load(load, lambda: end_node(nodes, report)))
                # The other has everything now.
                given.append(under_load(load, lambda: give_shard(nodes)))
                ended["one"].append(under_load(load, lambda: end_node(nodes, report)))
        add_outages(report, "R19", "switch-over of the master", switched, SHORT_SECONDS)
        for share, outages in ended.items():
            add_outages(report, "R18", f"owner of {share} ended (SIGTERM)", outages, TAKE_OVER_SECONDS)
        add_outages(report, "R18", "shard handed over by command", given, TAKE_OVER_SECONDS)
        add_ledger(report, "R19", "by hand", load, audit(load, nodes.addresses))


def under_load(load: Load, act) -> Outage:
    """Acts, and looks until the load has gone on for a while after it."""
    at = time.time()
    act()
    after = time.time()
    waits = load.wait_for_writes(after, list(range(SHARDS)), GIVEN_UP_SECONDS)
    settle(load)
    return outage_of(load, at, waits, list(range(SHARDS)))


def settle(load: Load, seconds: float = 3) -> None:
    time.sleep(seconds)
    load.check()


def switch(patroni: Patroni) -> None:
    patroni.switch_over()
    patroni.wait_until_whole()


def end_node(nodes: Nodes, report: Report) -> None:
    """The owner of most shards is told to end; the other has them all; it is started again."""
    node, _ = nodes.owner_of_most()
    other = nodes.other(node)
    node.terminate()
    code = node.wait_until_ended()
    if code != 0:
        report.add("R18", f"node ended (SIGTERM): exit code of {node.name}", "0", f"{code}", False)
    wait_until("the other node has every shard", lambda: set(nodes.owners()) == {other.name}, 30)
    node.start()
    node.wait_until_able()


def give_shard(nodes: Nodes) -> None:
    owner, shards = nodes.owner_of_most()
    other = nodes.other(owner)
    hand_over(other, shards[0])
    wait_until(f"{other.name} has shard {shards[0]}", lambda: nodes.owners()[shards[0]] == other.name, 30)


def hand_over(to: Node, shard: int) -> None:
    """Asked of the node itself: one that owns nothing is known to no other."""
    body = json.dumps({"shard": shard, "to": to.name}).encode()
    url, fields = f"http://{to.http}/billing/v1/cluster/hand_over", {"Content-Type": "application/json"}
    told = ""
    for _ in range(HAND_OVER_TRIES):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, fields), timeout=20) as answer:
                answer.read()
                return
        except urllib.error.HTTPError as error:
            told = f"{error.code} {error.read()[:500]!r}"
            if error.code not in (503, 504):
                break
        time.sleep(1)
    raise SystemExit(f"shard {shard} is not handed over to {to.name}: {told}")


def add_outages(report: Report, requirement: str, what: str, outages: list[Outage], bound: float) -> None:
    add_times(report, requirement, f"{what}: longest time without a write", bound, [one.longest_gap for one in outages])
    totals: dict[str, int] = {}
    for outage in outages:
        for kind, count in outage.failures.items():
            totals[kind] = totals.get(kind, 0) + count
    report.add(requirement, f"{what}: tries that had to be made again", "", describe(totals), None)
