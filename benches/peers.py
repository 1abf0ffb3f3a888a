#!/usr/bin/env python3
"""CPU per request of forefront beside nginx, haproxy and the floor server, in one run.

All servers run at once and idle but for the one that wrk drives; the rounds are interleaved (A B C D, A B C D, ...), so
that a disturbance of the machine meets all of them. A cell's figure is the median of its rounds: CPU nanoseconds of all
of the server's threads (schedstat) divided by the requests that wrk completed.

A cell in which a peer is far off its recorded ratio to the floor is void: it is measured again after the others.
Exit code: 0 all verdicts good, 1 one missed, 3 void.
"""

import argparse
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import processes

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = HERE / "peers"
TARGET = ROOT / "target" / "bench"

CONNECTIONS = 50
POST_LUA = """wrk.method = "POST"
wrk.body = '{"operation": 123456789}'
wrk.headers["Content-Type"] = "application/json"
"""

# cell: (path, method, the cell of the floor that ratios refer to)
CELLS = {
    "hit 1 KB": ("/hit", "GET", "hit 1 KB"),
    "hit 64 KB": ("/hit64", "GET", "hit 64 KB"),
    "pass GET": ("/pass", "GET", "pass GET"),
    "pass POST": ("/pass", "POST", "pass POST"),
}

# CPU microseconds per request from a quiet machine; only their ratios to the floor are used. A run that is further off
# than the factor, either way, says more of the machine than of the servers.
RECORDED = {
    "hit 1 KB": {"floor": 7.0, "nginx": 14.3, "haproxy": 10.1},
    "hit 64 KB": {"floor": 15.9, "nginx": 19.1, "haproxy": 25.8},
    "pass GET": {"floor": 6.8, "nginx": 17.5, "haproxy": 21.4},
    "pass POST": {"floor": 6.8, "nginx": 18.2, "haproxy": 24.2},
}
FAR_OFF = 2.0

# (cell, peer, factor): forefront's CPU per request is at or below factor times the peer's.
BOUNDS = [
    ("hit 1 KB", "haproxy", 1.2),
    ("pass GET", "nginx", 3.0),
    ("pass POST", "nginx", 3.0),
]


class Server:
    def __init__(self, name: str, child: subprocess.Popen, port: int):
        self.name, self.child, self.port = name, child, port


def fill_in(template: str, scratch: pathlib.Path, **names) -> pathlib.Path:
    text = (PEERS / template).read_text()
    for name, value in names.items():
        text = text.replace(f"@{name}@", str(value))
    path = scratch / template
    path.write_text(text)
    return path


def build_floor() -> pathlib.Path:
    TARGET.mkdir(parents=True, exist_ok=True)
    binary = TARGET / "floor"
    source = PEERS / "floor.c"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-pthread", "-o", binary, source], check=True)
    return binary


def start_floor(scratch: pathlib.Path, name: str = "floor") -> Server:
    port, log = processes.free_port(), scratch / f"{name}.log"
    child = processes.start([str(build_floor()), str(port), "2"], log)
    processes.wait_for_port(port, child, log)
    return Server(name, child, port)


def start_nginx(scratch: pathlib.Path, origin: int) -> Server:
    port, log = processes.free_port(), scratch / "nginx.log"
    config = fill_in("nginx.conf", scratch, PORT=port, ORIGIN=origin, DIR=scratch)
    command = [tool("nginx"), "-c", str(config), "-p", str(scratch), "-e", str(scratch / "nginx-error.log")]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]  # Else its workers become www-data, which may not enter the scratch directory.
    child = processes.start(command, log)
    processes.wait_for_port(port, child, log)
    return Server("nginx", child, port)


def start_haproxy(scratch: pathlib.Path, origin: int) -> Server:
    port, log = processes.free_port(), scratch / "haproxy.log"
    config = fill_in("haproxy.cfg", scratch, PORT=port, ORIGIN=origin)
    child = processes.start([tool("haproxy"), "-db", "-f", str(config)], log)
    processes.wait_for_port(port, child, log)
    return Server("haproxy", child, port)


def start_forefront(scratch: pathlib.Path, origin: int, binary: pathlib.Path) -> Server:
    port, log = processes.free_port(), scratch / "forefront.log"
    config = fill_in(
        "forefront.toml", scratch, PORT=port, ORIGIN=origin, ADMIN=processes.free_port(), HEALTH=processes.free_port()
    )
    child = processes.start([str(binary), "proxy", "--config", str(config)], log, cwd=scratch)
    processes.wait_for_port(port, child, log)
    return Server("forefront", child, port)


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise SystemExit(f"{name} is missing: run `make setup-bench`")
    return found


def drive(server: Server, path: str, method: str, seconds: float, scratch: pathlib.Path) -> float:
    """Runs wrk once; returns CPU microseconds per request."""
    script = scratch / "post.lua"
    script.write_text(POST_LUA)
    command = [tool("wrk"), f"-c{CONNECTIONS}", "-t2", f"-d{max(1, round(seconds))}s", "--timeout", "20s"]
    command += ["-s", str(script)] if method == "POST" else []
    command.append(f"http://127.0.0.1:{server.port}{path}")
    before = processes.cpu_ns(server.child.pid)
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 30).stdout
    spent = processes.cpu_ns(server.child.pid) - before
    requests = int(re.search(r"(\d+) requests in", output).group(1))
    if bad := re.search(r"(Non-2xx or 3xx responses|Socket errors):.*", output):
        # wrk counts a connection that is cut at its own end as an error only when bytes are missing: any is real.
        raise SystemExit(f"{server.name} {method} {path}: {bad.group(0)}\n{output}")
    if requests < 100:
        raise SystemExit(f"{server.name} {method} {path}: only {requests} requests")
    return spent / requests / 1000


def measure(cell: str, servers: list[Server], rounds: int, seconds: float, scratch: pathlib.Path) -> dict[str, float]:
    path, method, _ = CELLS[cell]
    figures: dict[str, list[float]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            figures[server.name].append(drive(server, path, method, seconds, scratch))
    return {name: statistics.median(values) for name, values in figures.items()}


def far_off(cell: str, figures: dict[str, float]) -> list[str]:
    """The peers whose ratio to the floor is not what it was on quiet machines."""
    found = []
    recorded = RECORDED[cell]
    for peer in recorded:
        ratio, now = recorded[peer] / recorded["floor"], figures[peer] / figures["floor"]
        if abs(math.log(now / ratio)) > math.log(FAR_OFF):
            found.append(f"{peer} is {now:.2f} x the floor, {ratio:.2f} is on record")
    return found


def measure_all(cells: list[str], spare_seconds: float, *rest) -> tuple[dict[str, dict[str, float]], set[str]]:
    """Each cell once; then those that are void again, as long as the spare time lasts. Returns figures and void cells."""
    results: dict[str, dict[str, float]] = {}
    waiting, spare_until = list(cells), None
    while waiting and (spare_until is None or time.monotonic() < spare_until):
        for cell in waiting:
            results[cell] = measure(cell, *rest)
            print(f"{cell}: " + ", ".join(f"{name} {value:.1f}" for name, value in results[cell].items()) + " µs", flush=True)
            for reason in far_off(cell, results[cell]):
                print(f"VOID  {cell}: {reason}", flush=True)
        waiting = [cell for cell in waiting if far_off(cell, results[cell])]
        spare_until = spare_until or time.monotonic() + spare_seconds
    return results, set(waiting)


def print_table(results: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(results.values())))
    print("\nCPU µs per request, median (in brackets: ratio to the floor)")
    print(f"{'':12}" + "".join(f"{name:>18}" for name in names))
    for cell, figures in results.items():
        row = "".join(f"{figures[name]:10.1f} ({figures[name] / figures['floor']:5.2f})" for name in names)
        print(f"{cell:12}{row}")


def print_verdicts(results: dict[str, dict[str, float]], void: set[str]) -> int:
    print(f"\n{'bound':40}{'figure':>10}  verdict")
    missed = 0
    for cell, peer, factor in BOUNDS:
        figures = results.get(cell, {})
        if "forefront" not in figures:
            continue
        ratio = figures["forefront"] / figures[peer]
        good = ratio <= factor
        missed += not good
        verdict = "VOID" if cell in void else "ok" if good else "MISSED"
        print(f"{f'{cell} <= {peer} x {factor}':40}{ratio:10.2f}  {verdict}")
    return missed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=lambda path: pathlib.Path(path).resolve(), default=ROOT / "target/release/forefront")
    parser.add_argument("--peers-only", action="store_true", help="without forefront: checks the bench itself")
    parser.add_argument("--seconds", type=float, default=4, help="of each wrk run (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--spare", type=float, default=60, help="seconds in which to begin measuring void cells again (default 60)")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    return parser.parse_args()


def main() -> int:
    args, load_before = arguments(), os.getloadavg()
    processes.end_on_signals()
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="forefront-bench-", dir=memory if memory.is_dir() else None) as directory:
        scratch = pathlib.Path(directory)
        origin = start_floor(scratch, "origin")
        servers = [start_floor(scratch), start_nginx(scratch, origin.port), start_haproxy(scratch, origin.port)]
        if not args.peers_only:
            servers.append(start_forefront(scratch, origin.port, args.binary))
        try:
            for server in servers:  # Fills the caches and the pools of idle connections.
                for path, method, _ in CELLS.values():
                    drive(server, path, method, 1, scratch)
            results, void = measure_all(args.cells, args.spare, servers, args.rounds, args.seconds, scratch)
        finally:
            processes.stop_all()
    print("\n" + processes.machine(load_before))
    print_table(results)
    missed = print_verdicts(results, void)
    if args.json:
        args.json.write_text(json.dumps({"cpu_us": results, "void": sorted(void)}, indent=1) + "\n")
    return 3 if void else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
