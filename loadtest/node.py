"""A proxy node beside the fleet's, with a configuration of its own: one that is given its certificate as files, or that is
kept by `forefront supervise`, which holds its sockets over restarts."""

import json
import os
import pathlib
import subprocess
import time

import processes
from fleet import fetch, status

READY_SECONDS = 60
STOP_SECONDS = 40

# Names between at signs are filled in below.
PROXY = """
[node]
name = "@NAME@"
state_dir = "@DIR@"
[listen]
http = ["127.0.0.1:@HTTP@"]
https = ["127.0.0.1:@HTTPS@"]
[tls]
@TLS@
[admin]
listen = "127.0.0.1:@ADMIN@"
[health]
listen = ["127.0.0.1:@HEALTH@"]
[log]
format = "text"
access_sample = 0.0
[drain]
delay = "1s"
grace = "5s"
[[upstream]]
name = "origin"
endpoints = [@ENDPOINTS@]
[upstream.health]
path = "/ping"
[[route]]
name = "operation"
path = "/operation"
upstream = "origin"
[[route]]
name = "long"
path = "/long_dummy"
upstream = "origin"
cache = { max_age = "60s", refresh_at = "30s" }
[[route]]
name = "rest"
path = "/*"
upstream = "origin"
"""

KEEPER = """
[node]
name = "@NAME@"
[admin]
listen = "127.0.0.1:@KEEPER@"
[[process]]
name = "proxy"
command = ["@BINARY@", "proxy", "--config", "@DIR@/proxy.toml"]
address = "127.0.0.1:@HEALTH@"
stop_timeout = "40s"
backoff = { min = "200ms", max = "15s" }
sockets = ["http=127.0.0.1:@HTTP@", "https=127.0.0.1:@HTTPS@", "quic=udp:127.0.0.1:@HTTPS@"]
[process.health]
path = "/live"
[process.log]
path = "@DIR@/proxy.log"
"""


class OwnNode:
    """`with OwnNode(binary, scratch, origins) as node:` waits until it is ready."""

    def __init__(
        self, binary: pathlib.Path, scratch: pathlib.Path, origins: list[str], name: str, tls: str = "", kept: bool = False
    ):
        self.directory, self.kept = scratch / f"{name}-{time.monotonic_ns()}", kept
        self.directory.mkdir()
        ports = {what: processes.free_port() for what in ("HTTP", "HTTPS", "ADMIN", "HEALTH", "KEEPER")}
        address = {what: f"127.0.0.1:{port}" for what, port in ports.items()}
        self.http, self.https, self.health, self.admin = (address[what] for what in ("HTTP", "HTTPS", "HEALTH", "ADMIN"))
        self.keeper = address["KEEPER"]
        tls = tls or 'self_signed = ["localhost"]'
        endpoints = ", ".join(json.dumps(one) for one in origins)
        names = {**ports, "NAME": name, "DIR": self.directory, "TLS": tls, "ENDPOINTS": endpoints, "BINARY": binary}
        for template, file in ((PROXY, "proxy.toml"), (KEEPER, "supervise.toml")):
            for key, value in names.items():
                template = template.replace(f"@{key}@", str(value))
            (self.directory / file).write_text(template)
        role, file = ("supervise", "supervise.toml") if kept else ("proxy", "proxy.toml")
        self.command, self.log = [str(binary), role, "--config", str(self.directory / file)], self.directory / f"{role}.log"

    def __enter__(self) -> "OwnNode":
        self.child = processes.start(self.command, self.log, cwd=self.directory)
        deadline = time.monotonic() + READY_SECONDS
        while status(f"http://{self.health}/ready") != 200:
            if time.monotonic() > deadline or self.child.poll() is not None:
                tail = "\n".join(log.read_text(errors="replace")[-1500:] for log in sorted(self.directory.glob("*.log")))
                raise SystemExit(f"{' '.join(self.command)} is not ready, or ended:\n{tail}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_) -> None:
        processes.stop(self.child, STOP_SECONDS)

    def pid(self) -> int | None:
        """Of the proxy. The keeper has it listening as well, so the port does not tell."""
        if not self.kept:
            return self.child.pid
        told = json.loads(fetch(f"http://{self.keeper}/status"))
        return next((one["pid"] for one in told["processes"] if one["name"] == "proxy"), None)


def make_certificate(directory: pathlib.Path) -> None:
    """`node.crt` and `node.key`, another one each time, ECDSA P-256; both appear whole."""
    new = {"keyout": directory / "new.key", "out": directory / "new.crt"}
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    for option, path in new.items():
        command += [f"-{option}", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    os.replace(new["keyout"], directory / "node.key")
    os.replace(new["out"], directory / "node.crt")
