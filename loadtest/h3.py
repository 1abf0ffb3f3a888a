"""Running h3load, the HTTP/3 client (loadtest/h3load.rs), and reading what it saw as if k6 had."""

import json
import pathlib
import subprocess
import time

import k6
import processes


class Run:
    """A mode of h3load under way; `finish()` waits for its end. It prints one line of JSON at its end, and `stall` one before."""

    def __init__(self, scratch: pathlib.Path, *arguments: str):
        self.what, self.log = arguments[0], scratch / f"h3load-{time.monotonic_ns()}.log"
        self.child = processes.start([processes.h3load(), *arguments], self.log)

    def told(self) -> list[dict]:
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for_line(self, seconds_max: float) -> dict:
        deadline = time.monotonic() + seconds_max
        while not (told := self.told()):
            if time.monotonic() > deadline or self.child.poll() is not None:
                raise SystemExit(f"h3load {self.what} tells nothing:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        return told[0]

    def finish(self, seconds_max: float) -> dict:
        try:
            code = self.child.wait(seconds_max)
        except subprocess.TimeoutExpired:
            code = "no end"
        processes.stop(self.child)
        if code != 0:
            raise SystemExit(f"h3load {self.what}: {code}\n{self.log.read_text(errors='replace')[-2000:]}")
        return self.told()[-1]


def rate(scratch: pathlib.Path, nodes: list[str], rate: int, seconds: int, *more: str) -> Run:
    """The mix at a constant rate. Its users begin at the first of the nodes (host:port)."""
    named = [word for node in nodes for word in ("--node", f"https://{node}")]
    return Run(scratch, "rate", *named, "--rate", str(rate), "--seconds", str(seconds), *more)


def requests(told: dict) -> list[k6.Request]:
    return [
        k6.Request(
            name=one["name"],
            method=one["method"],
            status=one["status"],
            error=one["error"],
            start=one["start"],
            end=one["start"] + one["seconds"],
            expected=one["status"] == 200,
            protocol="HTTP/3",
        )
        for one in told["requests"]
    ]


def certificate(scratch: pathlib.Path, node: str) -> str:
    """SHA-256 of the certificate that a node shows over QUIC."""
    return Run(scratch, "certificate", f"https://{node}").finish(15)["certificate_sha256"]
