#!/usr/bin/env python3
"""CPU per request of forefront beside nginx, haproxy and the floor server, in one run.

All servers run at once and idle but for the one that is driven; the rounds are interleaved (A B C D, A B C D, ...), so
that a disturbance of the machine meets all of them. A cell's figure is the median of its rounds: CPU nanoseconds of all
of the server's threads (schedstat) divided by the requests that were completed.

A cell in which a peer is far off its recorded ratio to the floor is void: it is measured again after the others.
Exit code: 0 all verdicts good, 1 one missed, 3 a cell with a bound is void.
"""

import argparse
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Cell:
    path: str
    method: str = "GET"
    speaks: str = "h1"  # The floor is asked in plain HTTP/1.1 in every cell.
    streams: int = 1
    servers: tuple[str, ...] = ("floor", "nginx", "haproxy", "forefront")


OVER_TLS = ("floor", "nginx", "forefront")
OVER_QUIC = ("floor", "forefront", "one socket")
CELLS = {
    "hit 1 KB": Cell("/hit"),
    "hit 64 KB": Cell("/hit64"),
    "pass GET": Cell("/pass"),
    "pass POST": Cell("/pass", "POST"),
    "hit 1 KB TLS h1": Cell("/hit", speaks="tls h1", servers=OVER_TLS),
    "hit 1 KB TLS h2": Cell("/hit", speaks="tls h2", servers=OVER_TLS),
    "hit 1 KB TLS h2 x10": Cell("/hit", speaks="tls h2", streams=10, servers=OVER_TLS),
    "hit 1 KB h3": Cell("/hit", speaks="h3", servers=OVER_QUIC),
    "hit 1 KB h3 x10": Cell("/hit", speaks="h3", streams=10, servers=OVER_QUIC),
    "hit 64 KB TLS h1": Cell("/hit64", speaks="tls h1", servers=OVER_TLS),
    "hit 64 KB TLS h2": Cell("/hit64", speaks="tls h2", servers=OVER_TLS),
    "hit 64 KB h3": Cell("/hit64", speaks="h3", servers=OVER_QUIC),
}

# CPU microseconds per request from a quiet machine; only their ratios to the floor are used. A run that is further off
# than the factor, either way, says more of the machine than of the servers.
RECORDED = {
    "hit 1 KB": {"floor": 7.0, "nginx": 14.3, "haproxy": 10.1},
    "hit 64 KB": {"floor": 15.9, "nginx": 19.1, "haproxy": 25.8},
    "pass GET": {"floor": 6.8, "nginx": 17.5, "haproxy": 21.4},
    "pass POST": {"floor": 6.8, "nginx": 18.2, "haproxy": 24.2},
    "hit 1 KB TLS h1": {"floor": 7.0, "nginx": 18.8},
    "hit 1 KB TLS h2": {"floor": 7.0, "nginx": 20.2},
    "hit 1 KB TLS h2 x10": {"floor": 7.0, "nginx": 14.8},
    "hit 64 KB TLS h1": {"floor": 12.5, "nginx": 79.6},
    "hit 64 KB TLS h2": {"floor": 12.5, "nginx": 99.8},
}
FAR_OFF = 2.0

# (cell, peer, factor): forefront's CPU per request is at or below factor times the peer's.
BOUNDS = [
    ("hit 1 KB", "haproxy", 1.2),
    ("pass GET", "nginx", 3.0),
    ("pass POST", "nginx", 3.0),
]


class Server:
    def __init__(self, name: str, child: subprocess.Popen, port: int, tls_port: int = 0):
        self.name, self.child, self.port, self.tls_port = name, child, port, tls_port


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


def make_certificate(scratch: pathlib.Path) -> None:
    """One for all servers: ECDSA P-256."""
    certificate, key = scratch / "bench.crt", scratch / "bench.key"
    if certificate.exists():
        return
    command = [tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)


def start_nginx(scratch: pathlib.Path, origin: int) -> Server:
    port, tls_port, log = processes.free_port(), processes.free_port(), scratch / "nginx.log"
    make_certificate(scratch)
    config = fill_in("nginx.conf", scratch, PORT=port, TLS_PORT=tls_port, ORIGIN=origin, DIR=scratch)
    command = [tool("nginx"), "-c", str(config), "-p", str(scratch), "-e", str(scratch / "nginx-error.log")]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]  # Else its workers become www-data, which may not enter the scratch directory.
    child = processes.start(command, log)
    processes.wait_for_port(port, child, log)
    return Server("nginx", child, port, tls_port)


def start_haproxy(scratch: pathlib.Path, origin: int) -> Server:
    port, log = processes.free_port(), scratch / "haproxy.log"
    config = fill_in("haproxy.cfg", scratch, PORT=port, ORIGIN=origin)
    child = processes.start([tool("haproxy"), "-db", "-f", str(config)], log)
    processes.wait_for_port(port, child, log)
    return Server("haproxy", child, port)


def start_forefront(
    scratch: pathlib.Path, origin: int, binary: pathlib.Path, name: str = "forefront", threads: int = 2
) -> Server:
    port, tls_port, log = processes.free_port(), processes.free_port(), scratch / f"{name}.log"
    make_certificate(scratch)
    admin, health = processes.free_port(), processes.free_port()
    names = {"PORT": port, "TLS_PORT": tls_port, "ORIGIN": origin, "ADMIN": admin, "HEALTH": health}
    config = fill_in("forefront.toml", scratch, **names, DIR=scratch, THREADS=threads)
    child = processes.start([str(binary), "proxy", "--config", str(config)], log, cwd=scratch)
    processes.wait_for_port(port, child, log)
    return Server(name, child, port, tls_port)


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise SystemExit(f"{name} is missing: run `make setup-bench`")
    return found


def drive(server: Server, cell: Cell, seconds: float, scratch: pathlib.Path) -> tuple[float, float]:
    """Runs a load generator once; returns CPU microseconds per request, and requests a second."""
    speaks = "h1" if server.name == "floor" else cell.speaks
    generator = {"h1": wrk, "tls h1": wrk, "tls h2": h2load, "h3": h3load}[speaks]
    seconds = max(1, round(seconds))
    before, began = processes.cpu_ns(server.child.pid), time.monotonic()
    requests, trouble = generator(server, cell, speaks, seconds, scratch)
    spent, took = processes.cpu_ns(server.child.pid) - before, time.monotonic() - began
    if trouble or requests < 100:
        raise SystemExit(f"{server.name}, {cell.method} {cell.path} over {speaks}: {requests} requests, {trouble or 'too few'}")
    return spent / requests / 1000, requests / took


def wrk(server: Server, cell: Cell, speaks: str, seconds: int, scratch: pathlib.Path) -> tuple[int, str]:
    command = [tool("wrk"), f"-c{CONNECTIONS}", "-t2", f"-d{seconds}s", "--timeout", "20s"]
    if cell.method == "POST":
        script = scratch / "post.lua"
        script.write_text(POST_LUA)
        command += ["-s", str(script)]
    base = f"http://127.0.0.1:{server.port}" if speaks == "h1" else f"https://127.0.0.1:{server.tls_port}"
    output = printed([*command, base + cell.path], seconds)
    # wrk counts a connection that is cut at its own end as an error only when bytes are missing: any is real.
    bad = re.search(r"(Non-2xx or 3xx responses|Socket errors):.*", output)
    return int(re.search(r"(\d+) requests in", output).group(1)), bad.group(0) if bad else ""


def h2load(server: Server, cell: Cell, _: str, seconds: int, __: pathlib.Path) -> tuple[int, str]:
    command = [tool("h2load"), f"-c{CONNECTIONS}", f"-m{cell.streams}", "-t2", f"-D{seconds}"]
    output = printed([*command, f"https://127.0.0.1:{server.tls_port}{cell.path}"], seconds)
    if "Application protocol: h2\n" not in output:
        return 0, "not spoken: " + output[:300]
    good = int(re.search(r"status codes: (\d+) 2xx", output).group(1))
    bad = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", output)
    return good, "" if bad.groups() == ("0", "0", "0") else bad.group(0)


def h3load(server: Server, cell: Cell, _: str, seconds: int, __: pathlib.Path) -> tuple[int, str]:
    """Our own generator; no other that is to be had speaks HTTP/3 fast enough."""
    command = [processes.h3load(), "closed", f"https://127.0.0.1:{server.tls_port}{cell.path}", "--connections", str(CONNECTIONS)]
    told = json.loads(printed([*command, "--streams", str(cell.streams), "--seconds", str(seconds)], seconds))
    good = told["statuses"].get("200", 0)
    return good, "" if good == told["requests"] and not told["errors"] else json.dumps(told)


def printed(command: list[str], seconds: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(name: str, servers: list[Server], rounds: int, seconds: float, scratch: pathlib.Path) -> dict[str, tuple[float, float]]:
    cell = CELLS[name]
    servers = [server for server in servers if server.name in cell.servers]
    figures: dict[str, list[tuple[float, float]]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            figures[server.name].append(drive(server, cell, seconds, scratch))
    return {name: tuple(statistics.median(column) for column in zip(*values)) for name, values in figures.items()}


def far_off(cell: str, figures: dict[str, float]) -> list[str]:
    """The peers whose ratio to the floor is not what it was on quiet machines."""
    found = []
    recorded = RECORDED.get(cell, {})
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
            measured = measure(cell, *rest)
            results[cell] = {name: cpu for name, (cpu, _) in measured.items()}
            told = (f"{name} {cpu:.1f} µs at {rate:,.0f}/s" for name, (cpu, rate) in measured.items())
            print(f"{cell}: " + ", ".join(told), flush=True)
            for reason in far_off(cell, results[cell]):
                print(f"VOID  {cell}: {reason}", flush=True)
        waiting = [cell for cell in waiting if far_off(cell, results[cell])]
        spare_until = spare_until or time.monotonic() + spare_seconds
    return results, set(waiting)


def print_table(results: dict[str, dict[str, float]], void: set[str]) -> None:
    names = list(dict.fromkeys(name for figures in results.values() for name in figures))
    print("\nCPU µs per request, median (in brackets: ratio to the floor, which is asked in plain HTTP/1.1)")
    print(f"{'':20}" + "".join(f"{name:>18}" for name in names))
    for cell, figures in results.items():
        row = "".join(
            f"{figures[name]:10.1f} ({figures[name] / figures['floor']:5.2f})" if name in figures else " " * 18 for name in names
        )
        print(f"{cell:20}{row}{'  VOID' if cell in void else ''}")


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
    parser.add_argument("--one-socket", action="store_true", help="HTTP/3 also with one thread, so one UDP socket")
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
        if args.one_socket:
            servers.append(start_forefront(scratch, origin.port, args.binary, "one socket", threads=1))
        if args.peers_only:
            args.cells = [name for name in args.cells if CELLS[name].speaks != "h3"]
        try:
            for server in servers:  # Fills the caches and the pools of idle connections.
                for name in ("hit 1 KB", "hit 64 KB", "pass GET", "pass POST"):
                    drive(server, CELLS[name], 1, scratch)
            results, void = measure_all(args.cells, args.spare, servers, args.rounds, args.seconds, scratch)
        finally:
            processes.stop_all()
    print("\n" + processes.machine(load_before))
    print_table(results, void)
    missed = print_verdicts(results, void)
    if args.json:
        args.json.write_text(json.dumps({"cpu_us": results, "void": sorted(void)}, indent=1) + "\n")
    # A cell without a bound judges nothing: that it is void is told, and fails no run.
    bounded = {cell for cell, _, _ in BOUNDS}
    return 3 if void & bounded else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
