#!/usr/bin/env python3
"""Billing under faults: real Patroni, etcd and PostgreSQL, real nodes, clients that know what every answer must be. Prints a
table: requirement, bound, figure, verdict.

    drill.py leader       the journal's master killed by -9 under load, 20 times and 3         about 14 minutes
    drill.py switchover   the master moved, nodes ended, shards handed over                    about 3 minutes
    drill.py nodes        billing nodes killed and frozen; orders of depletions                about 4 minutes
    drill.py webhook      the receiver of orders fails in every way; 10,000 at once            about 3 minutes

Without a name: all of them, one after the other. Exit code: 0 all bounds met, 1 one missed, or the run itself failed.
"""

import argparse
import pathlib
import random
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path += [str(ROOT / "loadtest"), str(ROOT / "benches")]  # The report, and where child processes are kept.

import failover  # noqa: E402
import processes  # noqa: E402
import takeover  # noqa: E402
import webhook  # noqa: E402
from report import Report  # noqa: E402
from scratch import Scratch  # noqa: E402

SCENARIOS = {
    "leader": failover.leader,
    "switchover": failover.switchover,
    "nodes": takeover.nodes,
    "webhook": webhook.webhook,
}
SECONDS_MAX = 30 * 60  # For one of them, whatever hangs.


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", type=scenario, metavar="SCENARIO", help="default: all")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/forefront")
    parser.add_argument("--quick", action="store_true", help="each fault once, but for three kills of the master")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of operations and moments; printed")
    parser.add_argument("--keep-logs", action="store_true", help="also of a run that missed nothing")
    args = parser.parse_args()
    processes.end_on_signals()
    signal.signal(signal.SIGALRM, too_long)
    results = ROOT / "target" / "loadtest"
    results.mkdir(parents=True, exist_ok=True)
    report = Report("drill-billing")
    print(f"seed {args.seed}", flush=True)
    for name in args.scenarios or SCENARIOS:
        run(name, args, report, results)
    return report.finish(results)


def scenario(name: str) -> str:
    if name not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SCENARIOS)}")
    return name


def too_long(*_) -> None:
    raise SystemExit(f"it took more than {SECONDS_MAX} s")


def run(name: str, args: argparse.Namespace, report: Report, results: pathlib.Path) -> None:
    began, judged, done = time.monotonic(), len(report.rows), False
    print(f"\n{name}", flush=True)
    signal.alarm(SECONDS_MAX)
    with Scratch(args.seed) as scratch:
        try:
            SCENARIOS[name](args.binary.resolve(), scratch, report, args.seed, args.quick)
            done = True
        finally:
            missed = any(row["good"] is False for row in report.rows[judged:])
            if args.keep_logs or missed or not done:
                scratch.keep_logs(results / f"billing-{name}-logs")
                print(f"  logs are in {results / f'billing-{name}-logs'}")
            processes.stop_all()
    signal.alarm(0)
    print(f"  {name} took {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
