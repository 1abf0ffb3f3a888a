#!/usr/bin/env python3
"""System calls per request of a server, counted by strace over keep-alive requests on one connection.

Counts are steady where timings are not: a change that adds a call to the hot path shows here on any machine.

    syscalls.py                       forefront before the floor server: a hit, and a pass-through GET
    syscalls.py --server nginx        the same of a peer
    syscalls.py --json                {"hit": {"recvfrom": 1.0, ...}, "pass": {...}}

A short run without requests is subtracted, so that timers and probes of an idle server do not count.
"""

import argparse
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import peers
import processes


class Client:
    """One keep-alive connection that sends one request at a time and reads each answer whole."""

    def __init__(self, port: int, path: str):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()

    def once(self) -> None:
        self.socket.sendall(self.request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not a 200: {head[:80]!r}")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not length:
            raise SystemExit("the answer has no Content-Length")
        missing = int(length.group(1)) - len(body)
        while missing > 0:
            missing -= len(self.receive())

    def receive(self) -> bytes:
        part = self.socket.recv(131072)
        if not part:
            raise SystemExit("the server closed the connection")
        return part


def counted(pids: list[int], scratch: pathlib.Path, work) -> dict[str, int]:
    """System calls by name that the processes make while `work()` runs."""
    summary = scratch / "strace.txt"
    summary.unlink(missing_ok=True)
    command = [peers.tool("strace"), "-f", "-c", "-U", "calls,name", "-o", str(summary)]
    for pid in pids:
        command += ["-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        threads = sum(len(list(pathlib.Path(f"/proc/{pid}/task").iterdir())) for pid in pids)
        wait_until_traced(pids, threads, tracer)
        work()
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)
    calls = {}
    for line in summary.read_text().splitlines():
        if found := re.fullmatch(r"\s*(\d+)\s+(\w+)", line):
            calls[found.group(2)] = int(found.group(1))
    calls.pop("total", None)
    return calls


def wait_until_traced(pids: list[int], threads: int, tracer: subprocess.Popen, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and tracer.poll() is None:
        traced = 0
        for pid in pids:
            for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
                traced += f"TracerPid:\t{tracer.pid}\n" in status.read_text()
        if traced >= threads:
            return
        time.sleep(0.05)
    raise SystemExit("strace could not attach (ptrace may be forbidden here)")


def per_request(server: peers.Server, path: str, requests: int, scratch: pathlib.Path) -> dict[str, float]:
    pids = processes.family(server.child.pid)
    client = Client(server.port, path)
    for _ in range(20):  # Fills the cache, opens the connection to the origin.
        client.once()
    took = 0.0

    def many() -> None:
        nonlocal took
        began = time.monotonic()
        for _ in range(requests):
            client.once()
        took = time.monotonic() - began

    busy = counted(pids, scratch, many)
    idle_seconds = min(2.0, took)
    idle = counted(pids, scratch, lambda: time.sleep(idle_seconds))
    figures = {}
    for name, calls in busy.items():
        own = (calls - idle.get(name, 0) * took / idle_seconds) / requests
        if own >= 0.005:
            figures[name] = round(own, 3)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=lambda path: pathlib.Path(path).resolve(), default=peers.ROOT / "target/release/forefront")
    parser.add_argument("--server", choices=["forefront", "nginx", "haproxy", "floor"], default="forefront")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    processes.end_on_signals()
    with tempfile.TemporaryDirectory(prefix="forefront-bench-") as directory:
        scratch = pathlib.Path(directory)
        origin = peers.start_floor(scratch, "origin")
        if args.server == "forefront":
            server = peers.start_forefront(scratch, origin.port, args.binary)
        elif args.server == "floor":
            server = origin
        else:
            server = {"nginx": peers.start_nginx, "haproxy": peers.start_haproxy}[args.server](scratch, origin.port)
        try:
            result = {
                "hit": per_request(server, "/hit", args.requests, scratch),
                "pass": per_request(server, "/pass", args.requests, scratch),
            }
        finally:
            processes.stop_all()
    if args.json:
        print(json.dumps(result))
    else:
        for kind, calls in result.items():
            listed = ", ".join(f"{name} {count:g}" for name, count in sorted(calls.items(), key=lambda one: -one[1]))
            print(f"{args.server} {kind}: {sum(calls.values()):.2f} calls per request ({listed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
