"""The systems of the billing bench, started in a directory of their own: forefront on either journal, and Tarantool."""

import dataclasses
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import time
import urllib.request

import processes

HERE = pathlib.Path(__file__).resolve().parent
STARTS_WITHIN = 60.0
LISTING = 500
SETTLES_WITHIN = 180.0
# Enough accounts to be in every shard.
HISTORIES = 16
LAG = re.compile(r'^forefront_billing_projection_lag_batches\{shard="\d+"\} (\d+)$', re.MULTILINE)
COMMIT_BUCKET = re.compile(r'^forefront_billing_commit_seconds_bucket\{le="([^"]+)"\} (\d+)$', re.MULTILINE)

FOREFRONT = """[node]
name = "bench"
state_dir = "{directory}/state"
[listen]
http = ["127.0.0.1:{http}"]
iproto = ["127.0.0.1:{port}"]
{journal}
[notifier]
url = "{webhook}{{user_id}}"
[log]
format = "text"
level = "warn"
"""
JOURNAL_POSTGRES = """[journal]
engine = "postgres"
connections = ["host=127.0.0.1 port={port} user=billing dbname=postgres target_session_attrs=read-write"]"""


class Client:
    """billload, our client for both."""

    def __init__(self, program: str):
        self.program = program

    def start(self, *arguments) -> subprocess.Popen:
        command = [self.program, *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, env={**os.environ, "RUST_BACKTRACE": "0"})

    def finish(self, child: subprocess.Popen, seconds: float = 180.0):
        """What it printed. An error answer ends the bench: a figure with errors in it is none."""
        try:
            out, trouble = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise SystemExit(f"{' '.join(child.args)} has not ended after {seconds:.0f} s") from None
        if child.returncode != 0:
            raise SystemExit(f"{' '.join(child.args)}: {trouble.strip()}")
        result = json.loads(out)
        if isinstance(result, dict) and result.get("errors"):
            raise SystemExit(f"{' '.join(child.args)}: {result['errors']} errors, the first: {result['first_error']}")
        return result

    def run(self, *arguments, seconds: float = 180.0):
        return self.finish(self.start(*arguments), seconds)


@dataclasses.dataclass
class Server:
    name: str
    client: Client
    address: str
    children: list[subprocess.Popen]
    accounts: int = 0

    def cpu_ns(self) -> list[int]:
        """Of each of its process trees: the server itself, then its database."""
        return [processes.cpu_ns(child.pid) for child in self.children]

    def rss(self) -> int:
        """Bytes of the server itself, once they no longer change."""
        last = 0
        for _ in range(10):
            now = sum(resident(pid) for pid in processes.family(self.children[0].pid))
            if abs(now - last) < now * 0.005:
                break
            last = now
            time.sleep(0.5)
        return now

    def create(self, first: int, count: int, balance: int, velocity: int, balance_step: int = 0) -> None:
        rest = ["--first", first, "--count", count, "--balance", balance, "--balance-step", balance_step]
        self.client.run("create", self.address, "--by", self.created_by, *rest, "--velocity", velocity)

    def grow(self, accounts: int) -> None:
        """To ids 1 to `accounts`, which outlive every bench by far."""
        if accounts > self.accounts:
            self.create(self.accounts + 1, accounts - self.accounts, 10**9, 10)
            self.accounts = accounts

    def load_arguments(self, seconds: float, outstanding: int, *more) -> list:
        seed = time.monotonic_ns() % 2**32
        fixed = ["load", self.address, "--accounts", self.accounts, "--outstanding", outstanding, "--seed", seed]
        return [*fixed, "--seconds", seconds, *more]

    def stop(self) -> None:
        for child in self.children:
            # PostgreSQL waits for its clients at SIGTERM, and for nobody at SIGINT.
            child.send_signal(signal.SIGINT if child.poll() is None else 0)
            processes.stop(child)


class Tarantool(Server):
    created_by = "call"

    def find_by(self, way: str) -> None:
        self.client.run("call", self.address, "find_by", way)

    def instants(self, first: int, count: int) -> dict[int, float]:
        [found] = self.client.run("call", self.address, "instants", first, first + count - 1)
        return {account: instant for account, instant in found}

    def forget(self, first: int, count: int) -> None:
        self.client.run("call", self.address, "forget", first, first + count - 1)

    def figures(self) -> dict:
        return self.client.run("call", self.address, "figures")[0]

    def commits(self) -> dict[float, int] | None:
        return None

    def settle(self) -> float:
        """Its ledger is written with each operation."""
        return 0.0


class Forefront(Server):
    created_by = "insert"
    http = ""

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=30) as answer:
            return answer.read()

    def find_by(self, _: str) -> None:
        pass

    def instants(self, first: int, count: int) -> dict[int, float]:
        found: dict[int, float] = {}
        after = first - 1
        while after < first + count - 1:
            page = json.loads(self.get(f"/billing/v1/accounts?after={after}&limit={LISTING}"))["accounts"]
            if not page:
                break
            after = page[-1]["id"]
            found |= {one["id"]: one["depletes_at"] for one in page if one["depletes_at"] and one["id"] < first + count}
        return found

    def forget(self, first: int, count: int) -> None:
        """They stay, delivered."""

    def settle(self) -> float:
        """Waits until all that was acknowledged is in the ledger too; seconds. Whoever asks for a history has it written."""
        began = time.monotonic()
        for account in range(1, HISTORIES + 1):
            self.get(f"/billing/v1/accounts/{account}/history?limit=1")
        while any(int(batches) for batches in LAG.findall(self.get("/metrics").decode())):
            if time.monotonic() - began > SETTLES_WITHIN:
                raise SystemExit(f"{self.name}: the ledger does not catch up")
            time.sleep(0.1)
        return time.monotonic() - began

    def commits(self) -> dict[float, int] | None:
        """Commits so far that took at most so many seconds."""
        found = COMMIT_BUCKET.findall(self.get("/metrics").decode())
        return {float(bound): int(count) for bound, count in found}


def start_tarantool(name: str, scratch: pathlib.Path, client: Client, webhook: str, wal_mode: str, way: str) -> Tarantool:
    directory = made(scratch, name)
    program = shutil.which("tarantool")
    if not program:
        raise SystemExit("tarantool is missing: run `make setup-bench-billing`")
    port, log = processes.free_port(), directory / "log"
    settings = {"PORT": str(port), "WAL_MODE": wal_mode, "WEBHOOK": webhook, "DEPLETIONS": way}
    child = processes.start([program, str(HERE / "accounts.lua")], log, cwd=directory, env={**os.environ, **settings})
    processes.wait_for_port(port, child, log, STARTS_WITHIN)
    return Tarantool(name, client, f"127.0.0.1:{port}", [child])


def start_forefront(name: str, scratch: pathlib.Path, client: Client, webhook: str, binary: pathlib.Path, postgres: bool) -> Forefront:
    directory = made(scratch, name)
    children, journal = [], ""
    if postgres:
        database, database_port = start_postgres(directory / "postgres")
        children.append(database)
        journal = JOURNAL_POSTGRES.format(port=database_port)
    http, port, log = processes.free_port(), processes.free_port(), directory / "log"
    config = directory / "billing.toml"
    config.write_text(FOREFRONT.format(directory=directory, http=http, port=port, journal=journal, webhook=webhook))
    child = processes.start([str(binary), "billing", "--config", str(config)], log)
    processes.wait_for_port(http, child, log, STARTS_WITHIN)
    server = Forefront(name, client, f"127.0.0.1:{port}", [child, *children])
    server.http = f"127.0.0.1:{http}"
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            server.get("/ping")
            return server
        except OSError:
            if time.monotonic() > deadline or child.poll() is not None:
                raise SystemExit(f"{name} is not ready:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.05)


def start_postgres(directory: pathlib.Path) -> tuple[subprocess.Popen, int]:
    """A cluster of its own, durable as it comes: fsync, synchronous_commit, full_page_writes."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parent.parent.name))
    if not found:
        raise SystemExit("PostgreSQL's server is missing: run `make setup-bench-billing`")
    bin, log, data = found[-1].parent, directory.with_suffix(".log"), directory / "data"
    directory.mkdir()
    who = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root.
        nobody = pwd.getpwnam("nobody")
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    command = [str(bin / "initdb"), "-A", "trust", "-U", "billing", "-E", "UTF8", "--locale=C", "-D", str(data)]
    initdb = subprocess.run(command, cwd=directory, capture_output=True, text=True, **who)
    if initdb.returncode != 0:
        raise SystemExit(f"initdb: {initdb.stderr}")
    port = processes.free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "shared_buffers": "256MB",
        "max_wal_size": "4GB",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    child = processes.start([str(bin / "postgres"), "-D", str(data), *options], log, cwd=directory, **who)
    # It listens before it lets anybody in.
    ready = [str(bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-d", "postgres", "-U", "billing"]
    deadline = time.monotonic() + STARTS_WITHIN
    while subprocess.run(ready).returncode != 0:
        if time.monotonic() > deadline or child.poll() is not None:
            raise SystemExit(f"PostgreSQL is not ready:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
    return child, port


def made(scratch: pathlib.Path, name: str) -> pathlib.Path:
    directory = scratch / re.sub(r"\W+", "-", name)
    directory.mkdir()
    return directory


def resident(pid: int) -> int:
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
