"""Billing nodes die or freeze while accounts run dry: the other takes over, nothing is lost, every order leaves, and none by a
node whose lease is gone."""

import math
import pathlib
import random
import time

import dry
from delivery import add_delivery
from judging import add_ledger, add_times, describe
from ledger import MICROS, Spending
from load import Load, audit
from nodes import Node, Nodes, postgres
from orders import Orders
from postgres import Single
from report import Report
from scratch import Scratch

SHARDS = 2
LEASE_SECONDS = 4.0
BOUND_SECONDS = 5.0
GIVEN_UP_SECONDS = 30.0
SPENDING = 150
DRY, DRY_SECONDS, DRY_AHEAD_SECONDS = 600, 0.4, 1.5
FIRST_DRY = 1_000_000
SETTLE_SECONDS = 3.0


def nodes(binary: pathlib.Path, scratch: Scratch, report: Report, seed: int, quick: bool) -> None:
    """Two replica sets of one server each, so that nothing but the nodes is at stake."""
    times = 1 if quick else 5
    sets = [Single(scratch, name) for name in ("pg-one", "pg-two")]
    journal = postgres(*(one.connection for one in sets))
    with Orders(scratch) as orders, Nodes(binary, scratch, "ab", journal, SHARDS, orders.address) as fleet:
        with Load(fleet.addresses, SHARDS, seed, rate=250, tellers=24, spending=SPENDING) as load:
            time.sleep(SETTLE_SECONDS)
            faults = Faults(fleet, load, random.Random(f"nodes {seed}"))
            killed, frozen = [], []
            for _ in range(times):
                killed.append(faults.kill())
                frozen.append(faults.freeze())
        for what, found in (("node killed", killed), ("node frozen for longer than its lease", frozen)):
            add_times(report, "R18", f"{what}: first write after (min / median / max)", BOUND_SECONDS, found)
        add_ledger(report, "R18", "nodes lost", load, audit(load, fleet.addresses))
        add_delivery(report, "nodes lost", fleet, load.spending + faults.dry, orders)


class Faults:
    """Of the node that owns most, each at a moment at which some hundred accounts run dry."""

    def __init__(self, fleet: Nodes, load: Load, dice: random.Random):
        self.fleet, self.load, self.dice = fleet, load, dice
        self.dry: list[Spending] = []

    def kill(self) -> float:
        node, shards = self.victim()
        at = node.kill()
        took = taken_over(self.load, at, shards, f"{node.name} killed")
        node.start()
        self.settle(node)
        return took

    def freeze(self) -> float:
        node, shards = self.victim()
        at = node.freeze()
        took = taken_over(self.load, at, shards, f"{node.name} frozen")
        # Others own its shards by now, and it does not know.
        time.sleep(max(0.0, at + LEASE_SECONDS + self.dice.uniform(1.5, 4) - time.time()))
        node.thaw()
        self.settle(node)
        return took

    def victim(self) -> tuple[Node, list[int]]:
        """At any moment of its lease, and right in the middle of orders that leave."""
        time.sleep(self.dice.uniform(0, LEASE_SECONDS / 2))
        node, shards = self.fleet.owner_of_most()
        instant = time.time() + DRY_AHEAD_SECONDS
        ends_at = [int((instant + DRY_SECONDS * (place / DRY - 0.5)) * MICROS) for place in range(DRY)]
        self.dry += dry.make(node.http, FIRST_DRY + len(self.dry), ends_at)
        time.sleep(max(0.0, instant - time.time()))
        return node, shards

    def settle(self, node: Node) -> None:
        node.wait_until_able()
        time.sleep(SETTLE_SECONDS)
        self.load.check()


def taken_over(load: Load, at: float, shards: list[int], what: str) -> float:
    waits = load.wait_for_writes(at, shards, GIVEN_UP_SECONDS)
    told = " ".join(f"shard {shard} {seconds:.2f} s" for shard, seconds in (waits or {}).items())
    print(f"    {what}: {told or 'no writes'}; {describe(load.failures_between(at, time.time()))}", flush=True)
    return max(waits.values()) if waits else math.inf
