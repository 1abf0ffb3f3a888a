#!/usr/bin/env python3
"""forefront's billing beside Tarantool with the same procedures in Lua: throughput, CPU, memory, and how long after an account
runs dry its order arrives. One client and one machine for all; docs/benchmarks.md tells how it is measured.

Exit code: 0 all targets met, 1 one missed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benches"))  # Where child processes are kept.

import depletion
import processes
import report
import servers
import throughput

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
PARTS = ("throughput", "depletion")
OUTSTANDING = 512
# A fsync on these is none.
IN_MEMORY = ("tmpfs", "ramfs", "overlay")


class Bench:
    def __init__(self, args: argparse.Namespace, scratch: pathlib.Path):
        self.args, self.scratch = args, scratch
        self.client = servers.Client(str(args.client))
        self.receiver = depletion.Receiver(self.client, scratch)

    def tarantool(self, name: str, wal_mode: str, way: str) -> servers.Tarantool:
        return servers.start_tarantool(name, self.scratch, self.client, self.receiver.webhook, wal_mode, way)

    def forefront(self, name: str, postgres: bool) -> servers.Forefront:
        return servers.start_forefront(name, self.scratch, self.client, self.receiver.webhook, self.args.binary, postgres)

    def measure_throughput(self) -> dict:
        systems = [
            self.tarantool("tarantool write", "write", "none"),
            self.tarantool("tarantool fsync", "fsync", "none"),
            self.tarantool("tarantool fsync indexed", "fsync", "indexed"),
            self.forefront("forefront embedded", postgres=False),
            self.forefront("forefront postgres", postgres=True),
        ]
        accounts, memory = max(self.args.accounts), {}
        for system in systems:
            print(f"  {system.name}: {accounts} accounts", flush=True)
            memory[system.name] = throughput.prepare(system, accounts, remembered=system.name != "tarantool write")
        busy = throughput.rounds(systems, self.args.rounds, self.args.seconds, OUTSTANDING)
        alone = throughput.rounds(systems, self.args.rounds, self.args.seconds / 2, 1)
        for system in systems:
            system.stop()
        return {
            "accounts": accounts,
            "rounds": {"512": busy, "1": alone},
            "systems": {
                name: {
                    "outstanding": {"512": throughput.summary(busy[name]), "1": throughput.summary(alone[name])},
                    "to_tarantool_fsync": throughput.ratio(busy, name, "tarantool fsync"),
                    "memory_bytes": memory[name],
                }
                for name in busy
            },
        }

    def measure_depletion(self) -> dict:
        peer = self.tarantool("tarantool", "fsync", "none")
        own = [self.forefront("forefront embedded", postgres=False), self.forefront("forefront postgres", postgres=True)]
        cells = depletion.Cells(self.receiver, self.args.probes, self.args.spread, self.scratch)
        measured = []
        for accounts in sorted(self.args.accounts):
            for system in [peer, *own]:
                system.grow(accounts)
                system.settle()
            for way in ("indexed", "second"):
                measured += self.cells(cells, peer, accounts, way)
            measured += self.as_expirationd(cells, peer, accounts)
            for system in own:
                measured += self.cells(cells, system, accounts, None)
        for system in [peer, *own]:
            system.stop()
        return {"probes": self.args.probes, "cells": measured}

    def cells(self, cells: depletion.Cells, system: servers.Server, accounts: int, way: str | None) -> list[dict]:
        """Idle, then at half of what it can do here and now."""
        name = f"{system.name} {way}" if way else system.name
        if way:
            system.find_by(way)
        idle = cells.measure(system, None, self.args.spread, depletion.PATIENCE)
        ceiling = throughput.measure(system, self.args.seconds / 2, OUTSTANDING)["per_second"]
        loaded = cells.measure(system, ceiling / 2, self.args.spread, depletion.PATIENCE)
        if way:
            system.find_by("none")
        of = {"system": name, "accounts": accounts, "computed": False}
        both = [of | {"load": None} | idle, of | loaded]
        for cell in both:
            print("  " + report.depletion_line(cell), flush=True)
        return both

    def as_expirationd(self, cells: depletion.Cells, peer: servers.Tarantool, accounts: int) -> list[dict]:
        """Measured where a pass is short enough to wait for; else what it must be: a pass is a matter of sleeping."""
        one_pass = depletion.expirationd_pass(accounts + self.args.probes)
        cell = {"system": "tarantool expirationd", "accounts": accounts, "load": None}
        if one_pass > self.args.pass_max:
            middle, most = one_pass / 2 * 1000, one_pass * 1000
            cell |= {"computed": True, "missing": 0, "p50_ms": middle, "p99_ms": most * 0.99, "max_ms": most}
        else:
            peer.find_by("expirationd")
            # Instants over a whole pass, so that no part of one counts more than another.
            cell |= {"computed": False} | cells.measure(peer, None, one_pass, one_pass + depletion.PATIENCE)
            peer.find_by("none")
        print("  " + report.depletion_line(cell), flush=True)
        return [cell]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, default=TARGET / "release" / "forefront")
    parser.add_argument("--client", type=pathlib.Path, default=TARGET / "release" / "examples" / "billload")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--accounts", nargs="+", type=int, help="default: 10000 100000 1000000; throughput takes the largest")
    parser.add_argument("--rounds", type=int, help="of throughput; default: 3")
    parser.add_argument("--seconds", type=float, help="of one round; default: 5")
    parser.add_argument("--quick", action="store_true", help="at most 100000 accounts, short rounds: to see that it runs")
    parser.add_argument("--scratch", type=pathlib.Path, default="/var/tmp", help="a directory on a disk; default: /var/tmp")
    parser.add_argument("--json", type=pathlib.Path, default=TARGET / "bench" / "billing.json")
    args = parser.parse_args()
    quick = args.quick
    args.accounts = args.accounts or ([10_000, 100_000] if quick else [10_000, 100_000, 1_000_000])
    args.rounds = args.rounds or (2 if quick else 3)
    args.seconds = args.seconds or (2.0 if quick else 5.0)
    args.probes, args.spread = (500, 2.5) if quick else (2000, 8.0)
    args.pass_max = 15.0
    for program, target in ((args.binary, "build"), (args.client, "billload")):
        if not program.exists():
            raise SystemExit(f"{program} is missing: run `make {target}`")
    kind = filesystem(args.scratch)
    if kind in IN_MEMORY:
        raise SystemExit(f"{args.scratch} is of {kind}, where a fsync costs nothing; name a directory on a disk by --scratch")
    return args


def filesystem(path: pathlib.Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", str(path)], check=True, capture_output=True, text=True).stdout.strip()


class Others:
    """How busy the machine was with anything that is not of this bench, the kernel's own threads included."""

    def __init__(self):
        self.own, self.busy, self.all = self.look()

    @staticmethod
    def look() -> tuple[float, float, float]:
        """Seconds of this bench, of everybody, and of all cores."""
        ended = os.times()
        own = processes.cpu_ns(os.getpid()) / 1e9 + ended.children_user + ended.children_system
        ticks = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, _ = ticks
        hertz = os.sysconf("SC_CLK_TCK")
        return own, (user + nice + system + irq + softirq) / hertz, sum(ticks) / hertz

    def share(self) -> float:
        own, busy, all = self.look()
        return max(0.0, (busy - self.busy) - (own - self.own)) / max(all - self.all, 0.01)


def fsync_ms(directory: pathlib.Path) -> float:
    """The median of 200 times 4 KiB, each made durable: what the disk gave in this run."""
    times = []
    with open(directory / "fsync", "wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            began = time.monotonic()
            os.fdatasync(file.fileno())
            times.append(time.monotonic() - began)
    return 1000 * sorted(times)[100]


def main() -> int:
    args = parse()
    processes.end_on_signals()
    began, load_before = time.monotonic(), os.getloadavg()
    # What parts that are not run now found last time stays.
    record = json.loads(args.json.read_text()) if args.json.exists() else {}
    with tempfile.TemporaryDirectory(prefix="forefront-billing-", dir=args.scratch) as directory:
        scratch = pathlib.Path(directory)
        scratch.chmod(0o755)
        bench = Bench(args, scratch)
        try:
            for part in args.parts:
                print(f"{part}:", flush=True)
                disk, others = fsync_ms(scratch), Others()
                bench.scratch = servers.made(scratch, part)
                found = getattr(bench, f"measure_{part}")()
                machine = f"{processes.machine(load_before)}; fsync of 4 KiB {disk:.2f} ms; others used {others.share():.0%} of the time"
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                record[part] = {"at": at, "machine": machine, "quick": args.quick, **found}
        finally:
            processes.stop_all()
    verdicts = report.verdicts(record)
    record["verdicts"] = verdicts
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + report.tables(record) + f"\n{time.monotonic() - began:.0f} s; all figures are in {args.json}")
    return 1 if any(not verdict["good"] for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
