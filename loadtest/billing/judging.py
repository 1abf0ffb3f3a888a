"""Rows of the table. Pure: from what was seen to verdicts."""

import statistics

from ledger import OrdersJudged
from load import Audit
from report import Report

SHOWN = 20  # Of each kind of mistake; the rest is counted.


def add_ledger(report: Report, requirement: str, what: str, load, audit: Audit) -> None:
    """What was acknowledged is there, once."""
    wrong = load.wrong + audit.balances_wrong
    twice = [text for text in wrong if "applied twice" in text]
    lost = [text for text in wrong if "lost" in text] + audit.replays_wrong
    odd = [text for text in wrong if text not in twice and text not in lost]
    counted = f"{len(load.told)} acknowledged, {load.reads} reads"
    report.add(requirement, f"{what}: operations", "> 0", counted, len(load.told) > 0)
    for name, found in (("lost", lost), ("applied twice", twice), ("answered oddly", odd)):
        report.add(requirement, f"{what}: {name}", "0", f"{len(found)}", not found)
        show(f"{what}: {name}", found)
    figure = f"{audit.replays - len(audit.replays_wrong)} of {audit.replays}"
    good = audit.replays == len(load.told) and not audit.replays_wrong
    report.add(requirement, f"{what}: keys that tell their first answer again", "all", figure, good)
    report.add(requirement, f"{what}: never answered", "0", f"{len(load.unanswered)}", not load.unanswered)


def add_orders(report: Report, what: str, judged: OrdersJudged, stray: list) -> None:
    figure = f"{len(judged.missed)} of {judged.ended}"
    report.add("R16", f"{what}: depletions without a delivered order", "0", figure, judged.ended > 0 and not judged.missed)
    report.add("R16", f"{what}: orders delivered more than once", "", f"{judged.copies} of {judged.delivered}", None)
    report.add("R16", f"{what}: orders of versions with money left", "0", f"{len(judged.early)}", not judged.early)
    report.add("R16", f"{what}: orders of nodes without the lease", "0", f"{len(stray)}", not stray)
    show(f"{what}: missed (account, version)", judged.missed)
    show(f"{what}: with money left", judged.early)
    show(f"{what}: without the lease", stray)


def add_times(report: Report, requirement: str, what: str, bound: float, times: list[float]) -> None:
    """Seconds, in the order in which they were taken; infinity for what did not come in time."""
    report.add(requirement, what, f"<= {bound:g} s each", spread(times), bool(times) and max(times) <= bound)
    print("       " + " ".join(f"{seconds:.1f}" for seconds in times), flush=True)


def spread(times: list[float], unit: str = "s") -> str:
    if not times:
        return "none"
    return f"{min(times):.1f} / {statistics.median(times):.1f} / {max(times):.1f} {unit} of {len(times)}"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("inf")


def describe(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "0"


def show(title: str, found: list) -> None:
    if found:
        print(f"    {title}:")
        for one in found[:SHOWN]:
            print(f"      {one}")
        if len(found) > SHOWN:
            print(f"      and {len(found) - SHOWN} more", flush=True)
