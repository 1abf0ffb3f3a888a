"""`forefront dev` under test: started, looked at from outside (its ports, the origin's counters, /proc), ended."""

import collections
import dataclasses
import http.client
import json
import os
import pathlib
import re
import socket
import time
import urllib.error
import urllib.request

import processes

READY_SECONDS = 120  # On a slow shared core, with a start-up delay of half a minute.
STOP_SECONDS = 40


@dataclasses.dataclass
class Node:
    name: str
    http: str  # host:port
    https: str  # The same over TCP and UDP.
    health: str
    admin: str


@dataclasses.dataclass
class Legacy:
    address: str
    control: str


class Fleet:
    """Two proxy nodes and two legacy processes. `with Fleet(binary, scratch) as fleet:` waits until both nodes are ready."""

    def __init__(self, binary: pathlib.Path, scratch: pathlib.Path, *options: str):
        self.binary, self.options = binary, options
        self.directory = scratch / f"fleet-{time.monotonic_ns()}"
        self.log = self.directory / "dev.log"
        self.nodes: list[Node] = []
        self.legacy: list[Legacy] = []

    def __enter__(self) -> "Fleet":
        self.directory.mkdir()
        # Free ports, so that a system that runs here already is not disturbed, and does not take our faults.
        command = [str(self.binary), "dev", "--json", "--ports", "0", "--state", str(self.directory), *self.options]
        self.child = processes.start(command, self.log, cwd=self.directory)
        self.wait_until_ready()
        return self

    def __exit__(self, *_) -> None:
        family = processes.family(self.child.pid)
        processes.stop(self.child, STOP_SECONDS)
        left = [pid for pid in family if is_running(pid)]
        if left:
            raise SystemExit(f"dev left processes behind: {left}")

    def read_addresses(self) -> None:
        """`dev --json` prints one line with every address once all is ready."""
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith('{"') and '"nodes"' in line:
                told = json.loads(line)
                bare = lambda url: url.split("://", 1)[1]  # noqa: E731
                self.nodes = [
                    Node(one["name"], *(bare(one[what]) for what in ("http", "https", "health", "admin"))) for one in told["nodes"]
                ]
                self.legacy = [Legacy(bare(one["http"]), bare(one["control"])) for one in told["legacy"]]

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                break
            self.read_addresses()
            ready = self.nodes and all(status(f"http://{node.health}/ready") == 200 for node in self.nodes)
            if ready and all(status(f"http://{one.address}/ping") == 200 for one in self.legacy):
                return
            time.sleep(0.1)
        tail = "\n".join(log.read_text(errors="replace")[-1500:] for log in sorted(self.directory.glob("*.log")))
        raise SystemExit(f"`forefront dev` is not ready after {READY_SECONDS} s, or ended:\n{tail}")

    @property
    def bases(self) -> str:
        """What the k6 scripts take as NODES."""
        return ",".join(f"http://{node.http}" for node in self.nodes)

    def requests(self) -> collections.Counter:
        """Requests that reached the origin so far, by "METHOD /path", of both processes; health checks left out."""
        total: collections.Counter = collections.Counter()
        for one in self.legacy:
            total.update(origin_counts(one))
        return total

    def proxy_pid(self, node: Node) -> int:
        return self.listener_pid(node.http)

    def legacy_pid(self, one: Legacy) -> int:
        answer = json.loads(fetch(f"http://{one.control}/pid"))
        return int(answer["pid"] if isinstance(answer, dict) else answer)

    def listener_pid(self, address: str) -> int:
        """The process of this fleet that listens on the port of `address`."""
        inodes = listening_inodes(int(address.rsplit(":", 1)[1]))
        for pid in processes.family(self.child.pid):
            try:
                for link in os.scandir(f"/proc/{pid}/fd"):
                    if os.readlink(link.path) in inodes:
                        return pid
            except OSError:
                continue
        raise LookupError(f"nobody of this fleet listens on {address}")

    def fault(self, one: Legacy, kind: str) -> None:
        body = json.dumps({"kind": kind}).encode()
        request = urllib.request.Request(f"http://{one.control}/fault", body, {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=5).read()
        except (http.client.HTTPException, OSError):
            # A process that exits at once may not live to answer; whether the fault happened is asserted elsewhere.
            pass

    def purge(self, node: Node, path: str) -> int:
        body = json.dumps({"path": path}).encode()
        request = urllib.request.Request(f"http://{node.admin}/cache/purge", body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=5))["removed"]


def origin_counts(one: Legacy) -> collections.Counter:
    """Ids in paths become `{id}`, whichever way the origin names them."""
    counts: collections.Counter = collections.Counter()
    for key, count in json.loads(fetch(f"http://{one.control}/requests", 10)).items():
        key = re.sub(r"/(\d+|:\w+|\{\w+\})$", "/{id}", key.split("?")[0])
        if key != "GET /ping":
            counts[key] += count
    return counts


def fetch(url: str, timeout: float = 5) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read()


def status(url: str, timeout: float = 1) -> int:
    """The status of a GET, 0 when there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def reachable(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, int(port))) == 0


def listening_inodes(port: int) -> set[str]:
    """Links as in /proc/PID/fd of the listening TCP sockets of a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(table).read_text().splitlines()[1:]:
            field = line.split()
            if field[3] == "0A" and int(field[1].rsplit(":", 1)[1], 16) == port:
                found.add(f"socket:[{field[9]}]")
    return found


def process_state(pid: int) -> str:
    """The state letter of /proc/PID/stat; "" when there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    return process_state(pid) not in ("", "Z", "X")


def resident_bytes(pid: int) -> int:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", text).group(1)) * 1024
