"""Billing nodes of forefront under test: started, harmed, looked at from outside."""

import dataclasses
import datetime
import json
import os
import pathlib
import secrets
import signal
import time

import processes
from fleet import is_running, process_state, status
from postgres import ask
from scratch import Scratch, start, wait_until

READY_SECONDS = 60
STOP_SECONDS = 50  # The node's own bounds on a hand-over, what is in flight and the journal come to 40 s.
STARTS_SECONDS_APART = 0.05

# Names between at signs are filled in below.
CONFIG = """
[node]
name = "@NAME@"
advertise = "127.0.0.1:@HTTP@"
peer_token_file = "@TOKEN@"
state_dir = "@DIR@/state"
[listen]
http = ["127.0.0.1:@HTTP@"]
[journal]
@JOURNAL@
[shards]
count = @SHARDS@
@NOTIFIER@
[log]
format = "json"
"""


@dataclasses.dataclass(frozen=True)
class Taken:
    """A node began to own a shard."""

    at: float
    node: str
    shard: int
    epoch: int


class Node:
    def __init__(self, binary: pathlib.Path, scratch: Scratch, name: str, config: str, token: pathlib.Path):
        self.name, self.directory = name, scratch.make(f"node-{name}")
        self.http = f"127.0.0.1:{scratch.port()}"
        self.file, self.log = self.directory / "billing.toml", self.directory / "billing.log"
        names = {"NAME": name, "HTTP": self.http.rsplit(":", 1)[1], "TOKEN": token, "DIR": self.directory}
        for key, value in names.items():
            config = config.replace(f"@{key}@", str(value))
        self.file.write_text(config)
        (self.directory / "state").mkdir()
        self.command = [str(binary), "billing", "--config", str(self.file)]
        self.child = None

    def start(self) -> None:
        self.child = start(self.command, self.log, self.directory)

    def is_able(self) -> bool:
        return status(f"http://{self.http}/ping") == 200

    def wait_until_able(self) -> None:
        def able() -> bool:
            if self.child.poll() is not None:
                raise SystemExit(f"node {self.name} has ended:\n{self.log.read_text(errors='replace')[-2000:]}")
            return self.is_able()

        wait_until(f"node {self.name} takes writes", able, READY_SECONDS)

    def kill(self) -> float:
        at = time.time()
        self.child.kill()
        self.child.wait()
        processes.stop(self.child)
        return at

    def freeze(self) -> float:
        at = time.time()
        os.kill(self.child.pid, signal.SIGSTOP)
        wait_until(f"node {self.name} is stopped", lambda: process_state(self.child.pid) == "T", 2, 0.001)
        return at

    def thaw(self) -> float:
        at = time.time()
        os.kill(self.child.pid, signal.SIGCONT)
        return at

    def terminate(self) -> float:
        """When it was told to end; see `wait_until_ended`."""
        at = time.time()
        self.child.terminate()
        return at

    def wait_until_ended(self) -> int:
        """Its exit code."""
        wait_until(f"node {self.name} has ended", lambda: self.child.poll() is not None, STOP_SECONDS)
        code = self.child.returncode
        processes.stop(self.child)
        return code

    def cluster(self) -> dict | None:
        return ask(f"http://{self.http}/billing/v1/cluster")

    def is_running(self) -> bool:
        return self.child is not None and is_running(self.child.pid)

    def taken(self) -> list[Taken]:
        """From its log, in its order."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if "this node owns the shard" not in line:
                continue
            told = json.loads(line)
            at = datetime.datetime.fromisoformat(told["timestamp"]).timestamp()
            found.append(Taken(at, self.name, told["shard"], told["epoch"]))
        return found


class Nodes:
    """Some nodes on one journal. `with Nodes(...) as nodes:` waits until every shard has an owner and every node takes writes."""

    def __init__(self, binary: pathlib.Path, scratch: Scratch, names: str, journal: str, shards: int, webhook: str | None = None):
        token = scratch.directory / f"peer-{time.monotonic_ns()}.token"
        token.write_text(secrets.token_hex(16) + "\n")
        self.shards = shards
        self.all: list[Node] = []
        for name in names:
            # Each with an address of its own, so that the receiver knows who sent what.
            notifier = f'[notifier]\nurl = "http://{webhook}/{name}/off?userID={{user_id}}"' if webhook else ""
            config = CONFIG.replace("@JOURNAL@", journal).replace("@SHARDS@", str(shards)).replace("@NOTIFIER@", notifier)
            self.all.append(Node(binary, scratch, name, config, token))

    def __enter__(self) -> "Nodes":
        for node in self.all:
            node.start()
            # Both would make the same tables.
            time.sleep(STARTS_SECONDS_APART)
        for node in self.all:
            node.wait_until_able()
        wait_until("every shard has an owner", lambda: None not in self.owners(), READY_SECONDS)
        return self

    def __exit__(self, *_) -> None:
        for node in self.all:
            if node.is_running():
                node.thaw()
                processes.stop(node.child, STOP_SECONDS)

    @property
    def addresses(self) -> list[str]:
        return [node.http for node in self.all]

    def named(self, name: str) -> Node:
        return next(node for node in self.all if node.name == name)

    def other(self, node: Node) -> Node:
        return next(one for one in self.all if one is not node)

    def owners(self) -> list[str | None]:
        """By shard, as the first node that answers sees it."""
        for node in self.all:
            told = node.cluster() if node.is_running() else None
            if told:
                return [shard["node"] for shard in sorted(told["shards"], key=lambda shard: shard["shard"])]
        return [None] * self.shards

    def owner_of_most(self) -> tuple[Node, list[int]]:
        """A node and its shards."""
        owners = self.owners()
        most = max((name for name in owners if name), key=owners.count)
        return self.named(most), [shard for shard, name in enumerate(owners) if name == most]

    def taken(self) -> list[Taken]:
        """Who took which shard, all nodes' logs together."""
        return sorted((one for node in self.all for one in node.taken()), key=lambda one: one.at)


def postgres(*connections: str) -> str:
    return f'engine = "postgres"\nconnections = {json.dumps(list(connections))}'


EMBEDDED = 'engine = "embedded"'
