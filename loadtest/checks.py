"""What needs exact counts or a stopwatch of its own: uncached means uncached, stampedes, expiry, memory."""

import asyncio
import dataclasses
import json
import re
import time

from fleet import Fleet, Node, resident_bytes
from report import Report

SESSION = {"start_time": "2024-05-06T07:08:09Z", "customer_id": 7, "movie_id": 7}


@dataclasses.dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes
    seconds: float

    def age_seconds(self) -> float | None:
        """The greater of the Age field and the age by the body, which tells when the origin began it (by this machine's clock)."""
        made = re.search(rb'"(?:started_at|generated_at)"\s*:\s*(\d+)', self.body)
        ages = [time.time() - int(made.group(1)) / 1000] if made else []
        ages += [float(self.fields["age"])] if "age" in self.fields else []
        return max(ages, default=None)


class Connection:
    """One HTTP/1.1 connection without any cleverness: no retries, no pool."""

    @classmethod
    async def open(cls, address: str, receive_limit: int = 65536) -> "Connection":
        self = cls()
        host, port = address.rsplit(":", 1)
        self.address = address
        self.reader, self.writer = await asyncio.open_connection(host, int(port), limit=receive_limit)
        return self

    async def ask(self, method: str, path: str, body: object = None, pace: float = 0) -> Answer:
        """`pace`: bytes a second to read the body at, 0 for as fast as it comes."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.address}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        began = time.monotonic()
        self.writer.write(head.encode() + b"\r\n" + content)
        await self.writer.drain()
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        answer = Answer(int(lines[0].split()[1]), fields, b"", 0)
        answer.body = await self.read_body(answer, pace)
        answer.seconds = time.monotonic() - began
        return answer

    async def read_body(self, answer: Answer, pace: float) -> bytes:
        if answer.status == 204:
            return b""
        if "chunked" not in answer.fields.get("transfer-encoding", ""):
            return await self.read_exactly(int(answer.fields.get("content-length", "0")), pace)
        body = bytearray()
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await self.read_exactly(size, pace)
            await self.reader.readexactly(2)
        await self.reader.readuntil(b"\r\n")
        return bytes(body)

    async def read_exactly(self, size: int, pace: float) -> bytes:
        body = bytearray()
        while len(body) < size:
            part = await self.reader.readexactly(min(65536, size - len(body)))
            body += part
            if pace:
                await asyncio.sleep(len(part) / pace)
        return bytes(body)

    def close(self) -> None:
        self.writer.close()


async def many_at_once(address: str, count: int, method: str, path: str, body: object = None) -> list[Answer]:
    """Opens all connections first, then sends all requests in one go."""
    connections = await asyncio.gather(*(Connection.open(address) for _ in range(count)))
    try:
        return await asyncio.gather(*(one.ask(method, path, body) for one in connections))
    finally:
        for one in connections:
            one.close()


# (requirement, what the origin's counter calls it, method, path, body, how many at once)
IDENTICAL = [
    ("R4", "POST /operation", "POST", "/operation", {"operation": 7}, 40),
    ("R5", "GET /db_dummy", "GET", "/db_dummy", None, 40),
    ("R6", "GET /api/movie/{id}", "GET", "/api/movie/7", None, 40),
    ("R6", "GET /api/customer/{id}", "GET", "/api/customer/7", None, 40),
    ("R6", "GET /api/session/{id}", "GET", "/api/session/7", None, 40),
    ("R7", "GET /api/movie", "GET", "/api/movie", None, 3),
    ("R7", "GET /api/customer", "GET", "/api/customer", None, 3),
    ("R7", "GET /api/session", "GET", "/api/session", None, 2),
    ("R8", "POST /api/session", "POST", "/api/session", SESSION, 20),
]


def identical(fleet: Fleet, report: Report) -> None:
    """Identical concurrent requests each reach the origin: nothing is collapsed, nothing reused."""
    for requirement, key, method, path, body, count in IDENTICAL:
        before = fleet.requests()[key]
        answers = asyncio.run(many_at_once(fleet.nodes[0].http, count, method, path, body))
        good = sum(200 <= one.status < 300 for one in answers)
        reached = fleet.requests()[key] - before
        figure = f"{reached} at the origin, {good} good"
        report.add(requirement, f"{count} x {key} at once", f"{count} at the origin", figure, reached == good == count)


def writes_are_seen(fleet: Fleet, report: Report) -> None:
    """A POST or DELETE through one node is seen by the next GET through the other."""

    async def walk() -> list[int]:
        a, b = await Connection.open(fleet.nodes[0].http), await Connection.open(fleet.nodes[1].http)
        added = await a.ask("POST", "/api/session", SESSION)
        path = f"/api/session/{json.loads(added.body)['id']}"
        seen = await b.ask("GET", path)
        deleted = await a.ask("DELETE", path)
        gone = await b.ask("GET", path)
        return [added.status, seen.status, deleted.status, gone.status]

    statuses = asyncio.run(walk())
    good = statuses[0] in (200, 201) and statuses[1] == 200 and statuses[2] in (200, 204) and statuses[3] == 404
    report.add("R8", "POST, GET, DELETE, GET of a session", "2xx, 200, 2xx, 404", ", ".join(map(str, statuses)), good)


def stampede(fleet: Fleet, report: Report, clients: int = 200) -> None:
    """Each node in turn, emptied: all clients at once make one request at the origin."""
    for node in fleet.nodes:
        for one in fleet.nodes:
            fleet.purge(one, "/long_dummy")
        before = fleet.requests()["GET /long_dummy"]
        answers = asyncio.run(many_at_once(node.http, clients, "GET", "/long_dummy"))
        reached = fleet.requests()["GET /long_dummy"] - before
        good = sum(one.status == 200 for one in answers)
        slowest = max(one.seconds for one in answers)
        figure = f"{reached} at the origin, {good} good, slowest {slowest:.1f} s"
        what = f"purged, {clients} clients at once on node {node.name}"
        report.add("R11", what, "1 request at the origin", figure, reached == 1 and good == clients)


def expiry(fleet: Fleet, report: Report, seconds: int = 130) -> None:
    """One request a second to each node over two lifetimes: nobody waits when an answer runs out."""

    async def watch() -> list[Answer]:
        answers = []
        connections = [await Connection.open(node.http) for node in fleet.nodes]
        for one in connections:  # The first may have to wait, if the node was just purged.
            await one.ask("GET", "/long_dummy")
        begin = time.monotonic()
        for tick in range(seconds):
            await asyncio.sleep(max(0, begin + tick - time.monotonic()))
            for answer in await asyncio.gather(*(one.ask("GET", "/long_dummy") for one in connections)):
                answers.append((answer, answer.age_seconds()))
        return answers

    before = fleet.requests()["GET /long_dummy"]
    answers = asyncio.run(watch())
    reached = fleet.requests()["GET /long_dummy"] - before
    slowest = max(answer.seconds for answer, _ in answers)
    ages = [age for _, age in answers if age is not None]
    bad = sum(answer.status != 200 for answer, _ in answers)
    what = f"{seconds} s at 1/s and node, two lifetimes"
    report.add("R11", f"{what}: slowest answer", "< 500 ms", f"{slowest * 1000:.1f} ms, {bad} bad", slowest < 0.5 and not bad)
    oldest = max(ages, default=None)
    figure = "no answer tells its age" if oldest is None else f"{oldest:.1f} s"
    good = oldest is not None and oldest <= 60 and len(ages) == len(answers)
    report.add("R11", f"{what}: greatest age", "<= 60 s", figure, good)
    report.add("R11", f"{what}: requests at the origin", "", f"{reached} of {len(answers)}", None)


async def slow_readers(node: Node, pid: int, path: str, readers: int, pace: float) -> tuple[list[Answer], int]:
    """All answers, and the greatest resident size of the process seen meanwhile."""
    greatest = resident_bytes(pid)
    connections = [await Connection.open(node.http, 65536) for _ in range(readers)]
    reading = asyncio.gather(*(one.ask("GET", path, pace=pace) for one in connections))
    while not reading.done():
        await asyncio.wait([reading], timeout=0.1)
        greatest = max(greatest, resident_bytes(pid))
    for one in connections:
        one.close()
    return await reading, greatest


def memory(fleet: Fleet, report: Report, readers: int = 10) -> None:
    """The proxy's memory while lists are read slowly: it must not grow with the list."""
    node = fleet.nodes[0]
    pid = fleet.proxy_pid(node)
    grown = {}
    for path, pace in (("/api/movie", 0.25e6), ("/api/session", 1.5e6)):
        before = resident_bytes(pid)
        answers, greatest = asyncio.run(slow_readers(node, pid, path, readers, pace))
        whole = all(one.status == 200 and one.body.rstrip().endswith(b"]") for one in answers)
        list_mib = len(answers[0].body) / 2**20
        grown[path] = (greatest - before) / 2**20
        took = max(one.seconds for one in answers)
        figure = f"{before / 2**20:.0f} -> {greatest / 2**20:.0f} MiB; list {list_mib:.1f} MiB, {took:.0f} s"
        what = f"{readers} slow readers of {path}: memory of the proxy"
        # Per stream a proxy may hold a few buffers: 2 MiB each is generous, and far less than the list of tens of MB.
        bound = 2.0 * readers
        report.add("R7", what, f"grows < {bound:.0f} MiB, all whole", figure, grown[path] < bound and whole)
