"""PostgreSQL servers: one by itself, or three that Patroni keeps, with etcd behind it."""

import json
import pathlib
import signal
import subprocess
import time
import urllib.error
import urllib.request

import keeper
import processes
from scratch import Scratch, start, wait_until

READY_SECONDS = 90
WHOLE_SECONDS = 180  # A node that was killed comes back by crash recovery and pg_rewind, or by a new copy.
CONFIGURED_SECONDS = 20
SCOPE = "billing"

# Small, for three on one machine; what makes a commit durable is as it comes. A standby looks for the new master each half
# second, not each five as it comes: no commit is acknowledged before it has found it. For the same reason without slots, which
# Patroni makes at a new master only when its next loop begins; `wal_keep_size` is there in their place.
SETTINGS = {
    "shared_buffers": "32MB",
    "max_connections": 60,
    "max_wal_senders": 8,
    "wal_keep_size": "256MB",
    "wal_retrieve_retry_interval": "500ms",
}
LAG_BYTES_MAX = 1 << 20


def binaries() -> pathlib.Path:
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise SystemExit("PostgreSQL's server is missing: run loadtest/billing/setup.sh")
    return found[-1].parent


class Single:
    """One server, not replicated."""

    def __init__(self, scratch: Scratch, name: str):
        self.scratch, self.directory, self.port = scratch, scratch.make(name), scratch.port()
        data, bin_dir = self.directory / "data", binaries()
        options = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        scratch.run(bin_dir / "initdb", *options, "-D", data, cwd=self.directory)
        settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.directory}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = scratch.command(bin_dir / "postgres", "-D", data, *words)
        self.child = start(command, self.directory / "postgres.log", self.directory)
        wait_until("a server of PostgreSQL is ready", lambda: is_ready(self.port, scratch), READY_SECONDS)
        make_database(scratch, self.port)

    @property
    def connection(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=billing dbname=billing target_session_attrs=read-write"


class Member:
    """A server and the Patroni that keeps it."""

    def __init__(self, scratch: Scratch, name: str, etcd_port: int, timing: dict[str, int]):
        self.name, self.directory, self.scratch = name, scratch.make(name), scratch
        self.port, self.rest = scratch.port(), scratch.port()
        self.file, self.log = self.directory / "patroni.json", self.directory / "patroni.log"
        everybody = ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust", "local all all trust"]
        settings = {
            "scope": SCOPE,
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{self.rest}", "connect_address": f"127.0.0.1:{self.rest}"},
            "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
            "bootstrap": {
                "dcs": {
                    **timing,
                    "maximum_lag_on_failover": 1 << 20,
                    "synchronous_mode": True,
                    "synchronous_mode_strict": True,
                    "postgresql": {"use_pg_rewind": True, "use_slots": False, "parameters": SETTINGS},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.directory / "data"),
                "bin_dir": str(binaries()),
                "pgpass": str(self.directory / "pgpass"),
                "parameters": {"unix_socket_directories": str(self.directory)},
                "pg_hba": everybody,
                "basebackup": [{"checkpoint": "fast"}],
                "authentication": {
                    "superuser": {"username": "postgres", "password": "postgres"},
                    "replication": {"username": "replicator", "password": "replicator"},
                },
            },
            "watchdog": {"mode": "off"},
        }
        # JSON is YAML.
        self.file.write_text(json.dumps(settings, indent=1))
        self.file.chmod(0o644)

    def start(self) -> None:
        self.child = start(self.scratch.command("patroni", self.file), self.log, self.directory)

    def kill(self) -> float:
        """Patroni and every process of its PostgreSQL, by -9. When all were gone."""
        self.child.send_signal(signal.SIGKILL)
        keeper.kill_all(self.directory)
        at = time.time()
        # Also takes it from the list of those to be ended.
        processes.stop(self.child)
        return at


class Patroni:
    """Three servers, the commits of which wait for a synchronous standby, and one etcd."""

    def __init__(self, scratch: Scratch, ttl: int, loop_wait: int, retry_timeout: int):
        self.scratch = scratch
        self.start_etcd()
        timing = {"ttl": ttl, "loop_wait": loop_wait, "retry_timeout": retry_timeout}
        self.members = {name: Member(scratch, name, self.etcd_port, timing) for name in ("pg-a", "pg-b", "pg-c")}
        first, *others = self.members.values()
        first.start()
        wait_until("Patroni has a leader", lambda: self.leader() is not None, READY_SECONDS)
        for member in others:
            member.start()
        self.wait_until_whole()
        make_database(scratch, self.members[self.leader()].port)

    def start_etcd(self) -> None:
        self.etcd_port, peer = self.scratch.port(), self.scratch.port()
        directory = self.scratch.make("etcd")
        urls = {"client": f"http://127.0.0.1:{self.etcd_port}", "peer": f"http://127.0.0.1:{peer}"}
        words = ["--name", "one", "--data-dir", directory / "data", "--logger", "zap", "--log-level", "warn"]
        words += ["--listen-client-urls", urls["client"], "--advertise-client-urls", urls["client"]]
        words += ["--listen-peer-urls", urls["peer"], "--initial-advertise-peer-urls", urls["peer"]]
        words += ["--initial-cluster", f"one={urls['peer']}"]
        log = directory / "etcd.log"
        child = start(self.scratch.command("etcd", *words), log, directory)
        processes.wait_for_port(self.etcd_port, child, log)

    @property
    def connection(self) -> str:
        ports = ",".join(str(member.port) for member in self.members.values())
        hosts = ",".join("127.0.0.1" for _ in self.members)
        return f"host={hosts} port={ports} user=billing dbname=billing target_session_attrs=read-write"

    def view(self) -> list[dict]:
        """The members as the first that answers sees them."""
        for member in self.members.values():
            told = ask(f"http://127.0.0.1:{member.rest}/cluster")
            if told:
                return told["members"]
        return []

    def leader(self) -> str | None:
        return next((one["name"] for one in self.view() if one["role"] == "leader" and one["state"] == "running"), None)

    def synchronous(self) -> str | None:
        """The standby that has every commit that was acknowledged."""
        return next((one["name"] for one in self.view() if one["role"] == "sync_standby"), None)

    def is_whole(self) -> bool:
        """A leader, a synchronous standby, and the third one right behind on the leader's timeline."""
        running = [one for one in self.view() if one["state"] in ("running", "streaming")]
        timelines = {one.get("timeline") for one in running}
        lags = [one.get("lag", 0) for one in running]
        near = all(isinstance(lag, int) and lag <= LAG_BYTES_MAX for lag in lags)
        roles = sorted(one["role"] for one in running)
        return near and roles == ["leader", "replica", "sync_standby"] and len(timelines) == 1 and None not in timelines

    def wait_until_whole(self) -> float:
        return wait_until("a master, a synchronous standby and a replica are there", self.is_whole, WHOLE_SECONDS)

    def configure(self, ttl: int, loop_wait: int, retry_timeout: int) -> None:
        """Other times, once every member has taken them over."""
        body = json.dumps({"ttl": ttl, "loop_wait": loop_wait, "retry_timeout": retry_timeout}).encode()
        url = f"http://127.0.0.1:{self.members[self.leader()].rest}/config"
        with urllib.request.urlopen(urllib.request.Request(url, body, method="PATCH"), timeout=10) as answer:
            answer.read()
        # A member reads them at its next turn, and the key of the leader has the new time to live from the one after.
        time.sleep(CONFIGURED_SECONDS)
        self.wait_until_whole()

    def switch_over(self) -> str:
        """To the synchronous standby, as an operator does it; its name."""
        leader, candidate = self.leader(), self.synchronous()
        member = self.members[leader]
        words = ["patronictl", "-c", member.file, "switchover", SCOPE, "--leader", leader, "--candidate", candidate, "--force"]
        self.scratch.run(*words, cwd=member.directory)
        wait_until(f"{candidate} leads", lambda: self.leader() == candidate, 60)
        return candidate


def ask(url: str) -> dict | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def is_ready(port: int, scratch: Scratch) -> bool:
    command = [str(binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command, cwd=scratch.directory, stdin=subprocess.DEVNULL, timeout=30).returncode == 0


def make_database(scratch: Scratch, port: int) -> None:
    """Of a role that may do nothing else."""
    server = ["-h", "127.0.0.1", "-p", port, "-U", "postgres", "-d", "postgres"]
    for sql in ("create role billing login", "create database billing owner billing"):
        scratch.run(binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *server, "-c", sql, cwd=scratch.directory)
