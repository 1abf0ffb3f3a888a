"""Clients that ask for 64 MB and read none of it: what they cost the proxy, and what others notice."""

import asyncio
import dataclasses
import pathlib
import socket
import ssl
import struct
import threading
import time

import faults
import h3
import k6
import processes
from fleet import resident_bytes
from node import OwnNode
from report import Report

BIG_BYTES = 64 * 2**20
CLIENTS = 10
SETTLE_SECONDS = 3
HELD_SECONDS = 10
TCP_RATE, QUIC_RATE = 100, 50
# A proxy may hold a few buffers for each of them: far less than what they asked for.
GROWS_MIB = 2.0 * CLIENTS
OTHERS_SECONDS_MAX = 0.5


@dataclasses.dataclass
class Transfer:
    sent: int = 0
    ended: bool = False


class Origin:
    """64 MB at /big, 1 KB elsewhere, on a thread of its own; knows how far each /big has come."""

    def __init__(self):
        self.transfers: list[Transfer] = []
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()

    def __enter__(self) -> "Origin":
        threading.Thread(target=self.run, daemon=True).start()
        self.ready.wait(5)
        return self

    def __exit__(self, *_) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(server.sockets[0].getsockname()[1])
        self.ready.set()
        self.loop.run_forever()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                big = head.startswith(b"GET /big ")
                length = BIG_BYTES if big else 1024
                fields = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
                writer.write(fields.encode() + (b"" if big else bytes(1024)))
                if big:
                    await self.send_big(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def send_big(self, writer: asyncio.StreamWriter) -> None:
        transfer = Transfer()
        self.transfers.append(transfer)
        try:
            while transfer.sent < BIG_BYTES:
                writer.write(bytes(65536))
                await writer.drain()
                transfer.sent += 65536
        finally:
            transfer.ended = True

    def under_way(self) -> list[Transfer]:
        return [one for one in self.transfers if not one.ended]


def connect(address: str, alpn: str | None) -> socket.socket:
    """A connection with a small receive buffer, over TLS if a protocol is named."""
    host, port = address.rsplit(":", 1)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    plain.settimeout(10)
    plain.connect((host, int(port)))
    if alpn is None:
        return plain
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    wire = context.wrap_socket(plain, server_hostname="localhost")
    if wire.selected_alpn_protocol() != alpn:
        raise SystemExit(f"{alpn} is not spoken")
    return wire


def h1_request(address: str) -> bytes:
    return f"GET /big HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()


def h2_request(address: str, wide: bool) -> bytes:
    """The preface, SETTINGS and one GET (RFC 9113, 3.4 and 6), its fields as literals. `wide`: with the greatest windows."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    fields = {":method": "GET", ":scheme": "https", ":path": "/big", ":authority": address}
    literal = lambda text: bytes([len(text)]) + text.encode()  # noqa: E731
    block = b"".join(b"\0" + literal(name) + literal(value) for name, value in fields.items())
    greatest = 2**31 - 1
    settings = struct.pack(">HI", 4, greatest) if wide else b""
    window = frame(8, 0, 0, struct.pack(">I", greatest - 65535)) if wide else b""
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings) + window + frame(1, 5, 1, block)


class OverTcp:
    def __init__(self, node: OwnNode, alpn: str | None, wide: bool = True):
        address = node.https if alpn else node.http
        request = h2_request(address, wide) if alpn == "h2" else h1_request(address)
        self.wires = [connect(address, alpn) for _ in range(CLIENTS)]
        for wire in self.wires:
            wire.sendall(request)

    def end(self) -> None:
        for wire in self.wires:
            wire.close()


class OverQuic:
    def __init__(self, node: OwnNode, scratch: pathlib.Path):
        seconds = str(SETTLE_SECONDS + HELD_SECONDS + 30)
        command = ("stall", f"https://{node.https}/big", "--connections", str(CLIENTS), "--seconds", seconds)
        self.run = h3.Run(scratch, *command)
        self.run.wait_for_line(15)

    def end(self) -> None:
        processes.stop(self.run.child)


def stalled(binary: pathlib.Path, scratch: pathlib.Path, report: Report) -> None:
    kinds = {
        "h1": lambda node: OverTcp(node, None),
        "h1-tls": lambda node: OverTcp(node, "http/1.1"),
        "h2": lambda node: OverTcp(node, "h2"),
        "h2, no window": lambda node: OverTcp(node, "h2", wide=False),
        "h3": lambda node: OverQuic(node, scratch),
    }
    with Origin() as origin:
        for protocol, begin in kinds.items():
            # A new node each time: what one kind of client made it allocate would hide what the next one does.
            with OwnNode(binary, scratch, [origin.address], "stalled") as node:
                others(node, scratch, 3)  # What a first use takes is not theirs.
                one_protocol(f"{CLIENTS} of {protocol} that do not read", begin, origin, node, scratch, report)


def one_protocol(what: str, begin, origin: Origin, node: OwnNode, scratch: pathlib.Path, report: Report) -> None:
    origin.transfers.clear()
    before = resident_bytes(node.pid())
    clients = begin(node)
    faults.expect("all of them have asked", lambda: len(origin.under_way()) == CLIENTS, 10)
    time.sleep(SETTLE_SECONDS)
    requests, greatest = others(node, scratch, HELD_SECONDS)
    # The proof: none has ended, neither well nor ill.
    held = origin.under_way()
    taken = max((one.sent for one in held), default=0)
    figure = f"{len(held)} under way, {taken / 2**20:.1f} MiB taken of one"
    report.add("R7", f"{what}: still held at the end", f"{CLIENTS}", figure, len(held) == CLIENTS and taken < BIG_BYTES)
    clients.end()
    grown = (greatest - before) / 2**20
    figure = f"{before / 2**20:.1f} -> {greatest / 2**20:.1f} MiB"
    report.add("R7", f"{what}: memory of the proxy", f"grows < {GROWS_MIB:.0f} MiB", figure, grown < GROWS_MIB)
    failed = [one for one in requests if one.status != 200]
    planned = (TCP_RATE + QUIC_RATE) * HELD_SECONDS
    good = not failed and len(requests) >= 0.95 * planned
    report.add("R7", f"{what}: requests of others failed", "0", f"{len(failed)} of {len(requests)}", good)
    times = sorted(one.seconds for one in requests)
    slowest, typical = (times[-1], times[int(len(times) * 0.99)]) if times else (0, 0)
    figure = f"{slowest * 1000:.0f} ms, 99 % within {typical * 1000:.0f} ms"
    bound = f"< {OTHERS_SECONDS_MAX * 1000:.0f} ms"
    report.add("R7", f"{what}: slowest of others", bound, figure, 0 < slowest < OTHERS_SECONDS_MAX)
    ended = wait_for_end(origin)
    report.add("R7", f"{what}: all let go at the origin when they left", "within 10 s", ended, ended.endswith(" s"))


def wait_for_end(origin: Origin, seconds: float = 10) -> str:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if not origin.under_way():
            return f"{time.monotonic() - began:.1f} s"
        time.sleep(0.05)
    return f"{len(origin.under_way())} under way"


def others(node: OwnNode, scratch: pathlib.Path, seconds: int) -> tuple[list[k6.Request], int]:
    """GETs over all protocols; also the greatest resident size of the proxy meanwhile."""
    bases = f"http://{node.http},https://{node.https}"
    over_tcp = k6.Run("others", scratch, every_request=True, SECONDS=seconds, RATE=TCP_RATE, NODES=bases)
    over_quic = h3.rate(scratch, [node.https], QUIC_RATE, seconds, "--path", "/small", "--connections", "5")
    greatest, pid = 0, node.pid()
    while over_tcp.child.poll() is None or over_quic.child.poll() is None:
        greatest = max(greatest, resident_bytes(pid))
        time.sleep(0.1)
    return over_tcp.finish(60).requests + h3.requests(over_quic.finish(60)), greatest
