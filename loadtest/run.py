#!/usr/bin/env python3
"""Starts `forefront dev`, puts load on it, and prints a table: requirement, bound, figure, verdict.

    run.py load       R1, R3 to R8, R11                      about 8 minutes
    run.py faults     every fault, R1 and R2                 about 7 minutes
    run.py stampede   purge, 200 clients at once; expiry     about 3 minutes
    run.py memory     ten slow readers of the lists          about 2 minutes
    run.py drain      a node drained over each protocol      about 3 minutes
    run.py handover   a node restarted by hand-over          about 3 minutes
    run.py certificate  replaced under load                  about 1 minute
    run.py stalled    clients that read nothing              about 2 minutes
    run.py steady     60 requests/s for 30 minutes (--seconds)
    run.py smoke      counts only, never latency             about 40 seconds

Exit code: 0 all bounds met, 1 one missed, or the run itself failed.
"""

import argparse
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "benches"))  # Where child processes are kept.

import checks  # noqa: E402
import faults  # noqa: E402
import k6  # noqa: E402
import processes  # noqa: E402
import protocols  # noqa: E402
import stalled  # noqa: E402
from fleet import Fleet  # noqa: E402
from report import Report  # noqa: E402

SLOW_START_SECONDS = 30

# What k6 calls it, what the origin's counter calls it, requirement.
UNCACHED = [
    ("operation", "POST /operation", "R4"),
    ("db_dummy", "GET /db_dummy", "R5"),
    ("movie", "GET /api/movie/{id}", "R6"),
    ("customer", "GET /api/customer/{id}", "R6"),
    ("session", "GET /api/session/{id}", "R6"),
    ("movie_list", "GET /api/movie", "R7"),
    ("customer_list", "GET /api/customer", "R7"),
    ("session_list", "GET /api/session", "R7"),
    ("session_post", "POST /api/session", "R8"),
    ("session_delete", "DELETE /api/session/{id}", "R8"),
]
QUICK = ("operation", "db_dummy", "movie", "customer", "session")


def measured(fleet: Fleet, scratch: pathlib.Path, script: str, seconds_max: float, **environment):
    """Runs a script; also returns the requests that reached the origin meanwhile."""
    before = fleet.requests()
    result = k6.Run(script, scratch, NODES=fleet.bases, **environment).finish(seconds_max)
    after = fleet.requests()
    after.subtract(before)
    return result, after


def add_same_count(result: k6.Result, reached, names, report: Report, what: str) -> None:
    """Requests at the origin = requests of the clients."""
    for name, key, requirement in names:
        sent = result.sent(name)
        if sent:
            figure = f"{reached[key]} at the origin, {sent} sent"
            report.add(requirement, f"{what}: {key} uncached", "as many at the origin", figure, reached[key] == sent)


def add_long_dummy(result: k6.Result, reached, seconds: float, report: Report, what: str) -> None:
    share = result.value("long_dummy_under_one_second", "rate")
    slowest = result.of("long_dummy", "http_req_duration", "max")
    report.add("R11", f"{what}: /long_dummy under 1 s", "100 %", f"{share:.2%}, slowest {slowest:.0f} ms", share == 1)
    age = max(result.value("long_dummy_age_of_body", "max") / 1000, result.value("long_dummy_age_field_seconds", "max"))
    told = result.value("long_dummy_age_of_body", "count") == result.sent("long_dummy") - result.failed("long_dummy") > 0
    figure = f"{age:.1f} s" if told else "not every answer tells its age"
    report.add("R11", f"{what}: greatest age", "<= 60 s", figure, told and age <= 60)
    # Renewed at half its life at each of two nodes, and a margin for the ends of the run.
    most = 2 * (seconds / 30 + 2)
    count, sent = reached["GET /long_dummy"], result.sent("long_dummy")
    report.add("R11", f"{what}: /long_dummy at the origin", f"<= {most:.0f}", f"{count} for {sent} requests", count <= most)


def mix(fleet: Fleet, scratch: pathlib.Path, report: Report, script: str, rate: int, seconds: int) -> None:
    """R3: the mix at a constant rate, after warm-up."""
    faults.wait_until_whole(fleet)
    result, reached = measured(fleet, scratch, script, seconds + 200, SECONDS=seconds, RATE=rate)
    what = f"{rate}/s for {seconds} s"
    planned = rate * seconds
    report.add("R3", f"{what}: requests sent", f">= 95 % of {planned}", f"{result.sent()}", result.sent() >= 0.95 * planned)
    failed = result.failed()
    report.add("R3", f"{what}: failed", "0", f"{failed}", failed == 0)
    for name in QUICK:
        p90 = result.of(name, "http_req_duration", "p(90)")
        report.add("R3", f"{what}: {name}, 90 % under", "400 ms", f"{p90:.0f} ms", p90 < 400)
    add_long_dummy(result, reached, seconds, report, what)
    add_same_count(result, reached, UNCACHED, report, what)


def endpoints(fleet: Fleet, scratch: pathlib.Path, report: Report, seconds: int) -> None:
    """R4 to R8 and R11, each endpoint alone."""
    result, reached = measured(fleet, scratch, "endpoints", 11 * (seconds + 2) + 200, SECONDS=seconds)
    for name, key, requirement in UNCACHED:
        sent, failed = result.sent(name), result.failed(name)
        share = failed / max(1, sent)
        limit = 0.05 if name == "session_list" else 0.01
        if name in QUICK:
            planned = 120 * seconds
            report.add(requirement, f"{key} at 120/s: sent", f">= 95 % of {planned}", f"{sent}", sent >= 0.95 * planned)
            p90 = result.of(name, "http_req_duration", "p(90)")
            slowest = result.of(name, "http_req_duration", "max")
            report.add(requirement, f"{key}: 90 % under", "400 ms", f"{p90:.0f} ms, slowest {slowest:.0f} ms", p90 < 400)
        else:
            slowest = result.of(name, "http_req_duration", "max")
            report.add(requirement, f"{key}, one user: slowest", "", f"{slowest:.0f} ms", None)
        report.add(requirement, f"{key}: failed", f"<= {limit:.0%}", f"{failed} of {sent}", sent > 0 and share <= limit)
    planned, sent = 120 * seconds, result.sent("long_dummy")
    report.add("R11", "GET /long_dummy at 120/s: sent", f">= 95 % of {planned}", f"{sent}", sent >= 0.95 * planned)
    add_long_dummy(result, reached, 11 * (seconds + 2), report, "alone at 120/s")
    add_same_count(result, reached, UNCACHED, report, "alone")


def load(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        checks.identical(fleet, report)
        checks.writes_are_seen(fleet, report)
        faults.wait_until_whole(fleet)
        endpoints(fleet, scratch, report, args.seconds or 20)
        mix(fleet, scratch, report, "steady", 60, 60)
        mix(fleet, scratch, report, "peak", 120, 60)
        faults.legacy_faults(fleet, scratch, report, kinds=("kill",))
        faults.wait_until_whole(fleet)
        faults.node_faults(fleet, scratch, report, kinds=("kill",))


LEGACY_FAULTS, NODE_FAULTS, LATE_FAULTS = ("kill", "stop", "sick", "exit"), ("kill", "drain"), ("slow", "overload")
FAULTS = [f"legacy-{kind}" for kind in (*LEGACY_FAULTS, *LATE_FAULTS)] + [f"node-{kind}" for kind in NODE_FAULTS]


def all_faults(args, scratch: pathlib.Path, report: Report) -> None:
    wanted = args.only or FAULTS
    legacy = tuple(name.removeprefix("legacy-") for name in wanted if name.startswith("legacy-"))
    early = tuple(kind for kind in legacy if kind in LEGACY_FAULTS)
    nodes = tuple(name.removeprefix("node-") for name in wanted if name.startswith("node-"))
    if early or nodes:
        with Fleet(args.binary, scratch) as fleet:
            faults.legacy_faults(fleet, scratch, report, early)
            faults.wait_until_whole(fleet)
            faults.node_faults(fleet, scratch, report, nodes)
    if len(legacy) == len(early):
        return
    with Fleet(args.binary, scratch, "--start-delay", f"{SLOW_START_SECONDS}s") as fleet:
        if "slow" in legacy:
            faults.wait_until_whole(fleet)
            slow = faults.LegacyFaults(fleet, fleet.legacy[0]).exit(f"legacy exit, start-up of {SLOW_START_SECONDS} s")
            faults.run_fault(slow, fleet.bases, 60, scratch, report)
        if "overload" in legacy:
            faults.wait_until_whole(fleet)
            faults.overload(fleet, fleet.legacy[1], SLOW_START_SECONDS, scratch, report)


def stampede(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        checks.stampede(fleet, report)
        checks.expiry(fleet, report, args.seconds or 130)


def memory(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        checks.memory(fleet, report)


def drain(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        protocols.drain(fleet, scratch, report, max(30, args.seconds or 0), args.protocol)


def handover(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        protocols.handover(fleet, args.binary, scratch, report, max(30, args.seconds or 0), args.protocol)


def certificate(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        protocols.certificate(fleet, args.binary, scratch, report, args.seconds or 30)


def stalled_clients(args, scratch: pathlib.Path, report: Report) -> None:
    stalled.stalled(args.binary, scratch, report)


def steady(args, scratch: pathlib.Path, report: Report) -> None:
    with Fleet(args.binary, scratch) as fleet:
        mix(fleet, scratch, report, "steady", 60, args.seconds or 1800)


def smoke(args, scratch: pathlib.Path, report: Report) -> None:
    """For CI: counts, no latencies, as the machine may be slow and shared."""
    seconds, rate = args.seconds or 15, 20
    with Fleet(args.binary, scratch) as fleet:
        checks.identical(fleet, report)
        checks.writes_are_seen(fleet, report)
        result, reached = measured(fleet, scratch, "steady", seconds + 200, SECONDS=seconds, RATE=rate)
        sent, failed = result.sent(), result.failed()
        report.add("R3", f"{rate}/s for {seconds} s: requests sent", ">= 95 %", f"{sent}", sent >= 0.95 * rate * seconds)
        report.add("R3", f"{rate}/s for {seconds} s: failed", "0", f"{failed}", failed == 0)
        old = int(result.value("long_dummy_too_old", "count") + result.value("long_dummy_without_age", "count"))
        report.add("R11", "/long_dummy answers too old, or of unknown age", "0", f"{old}", old == 0)
        at_origin = reached["GET /long_dummy"]
        report.add("R11", "/long_dummy requests at the origin", "<= 4", f"{at_origin} of {result.sent('long_dummy')}", at_origin <= 4)
        add_same_count(result, reached, UNCACHED, report, "smoke")


COMMANDS = {
    "load": load,
    "faults": all_faults,
    "stampede": stampede,
    "memory": memory,
    "drain": drain,
    "handover": handover,
    "certificate": certificate,
    "stalled": stalled_clients,
    "steady": steady,
    "smoke": smoke,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/forefront")
    parser.add_argument("--seconds", type=int, help="of each part that has a length of its own")
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="of the faults; one may be named several times")
    every = protocols.PROTOCOLS
    parser.add_argument("--protocol", nargs="+", choices=every, default=every, help="of drain and handover")
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    processes.end_on_signals()
    results = ROOT / "target" / "loadtest"
    results.mkdir(parents=True, exist_ok=True)
    report, began = Report(args.command), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forefront-load-") as scratch:
        try:
            COMMANDS[args.command](args, pathlib.Path(scratch), report)
        finally:
            processes.stop_all()
    print(f"\n{args.command} took {time.monotonic() - began:.0f} s")
    return report.finish(results)


if __name__ == "__main__":
    sys.exit(main())
