"""Whether the orders of a run are the right ones, looked at once the last account has run dry."""

import time

from judging import add_orders, show, spread
from ledger import MICROS, Spending, judge_orders, without_lease
from nodes import Nodes
from orders import Orders
from postgres import ask
from report import Report

LOG_SLACK_SECONDS = 0.1  # Between what a node does and what its log tells.
DELIVERED_SECONDS = 30.0


def add_delivery(report: Report, what: str, fleet: Nodes, accounts: list[Spending], orders: Orders) -> None:
    last = max((version.depletes_at for one in accounts for version in one.versions.values()), default=0)
    time.sleep(max(0.0, last / MICROS - time.time()))
    deadline = time.monotonic() + DELIVERED_SECONDS
    while (judged := judge_orders(accounts, orders.arrivals(), last)).missed and time.monotonic() < deadline:
        time.sleep(0.5)
    stray = without_lease(orders.arrivals(), fleet.taken(), fleet.shards, int(LOG_SLACK_SECONDS * MICROS))
    add_orders(report, what, judged, stray)
    raced = sum(version.raced for one in accounts for version in one.versions.values())
    report.add("R16", f"{what}: versions whose order may have been cancelled", "", f"{raced}", None)
    delays = [delay / 1000 for delay in judged.delays_us]
    report.add("R16", f"{what}: end of money to order (min / median / max)", "", spread(delays, "ms"), None)
    open_still = [text for one in accounts if (text := still_open(fleet, one))]
    report.add("R16", f"{what}: accounts not stopped in the end", "0", f"{len(open_still)}", not open_still)
    show(f"{what}: not stopped", open_still)


def still_open(fleet: Nodes, one: Spending) -> str:
    told = ask(f"http://{fleet.addresses[0]}/billing/v1/accounts/{one.account}")
    good = told and told["state"] == "stopped" and told["version"] == one.version and told["overrun"] is not None
    return "" if good else f"account {one.account} at version {one.version}: {told}"
