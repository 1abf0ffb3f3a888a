#!/usr/bin/env python3
"""A receiver of orders to switch off: answers `GET /NODE/off?userID=ID` as it is told to, and writes down each.

    receiver.py PORT CONTROL_PORT ORDERS_FILE

`GET /mode/NAME` on the control port sets how: well, fail (500), hang (no answer), slow, garbage (no HTTP), refuse (the port is
closed). A line of the file: when the order came in microseconds since the epoch, node, account, version, status of the
answer (0: none).
"""

import asyncio
import os
import random
import re
import signal
import sys
import time

MODES = ("well", "fail", "hang", "slow", "garbage", "refuse")
ANSWER_SECONDS = 0.02  # As over a network, from a service that does something.
SLOW_SECONDS = (0.2, 1.0)
REQUEST = re.compile(rb"GET /(\w+)/off\?userID=(\d+) HTTP/1\.1\r\n")
KEY = re.compile(rb"\r\nidempotency-key: (\d+)-(\d+)\r\n", re.IGNORECASE)
HEAD_BYTES_MAX = 16384


class Receiver:
    def __init__(self, port: int, control_port: int, file: str):
        self.port, self.control_port = port, control_port
        # By line, so that what was answered is never missing in it.
        self.file = open(file, "a", buffering=1)
        self.mode = "well"
        self.server: asyncio.Server | None = None
        self.connections: set[asyncio.Transport] = set()
        self.random = random.Random(port)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        await self.open()
        control = await asyncio.start_server(self.control, "127.0.0.1", self.control_port)
        await ended.wait()
        control.close()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, backlog=512)

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = (await reader.readline()).split()[1].decode().removeprefix("/mode/")
        await reader.readuntil(b"\r\n\r\n")
        known = mode in MODES
        if known:
            await self.set_mode(mode)
        writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (200 if known else 404))
        writer.close()

    async def set_mode(self, mode: str) -> None:
        self.mode = mode
        if mode == "refuse" and self.server:
            self.server.close()
            self.server = None
        if mode != "refuse" and not self.server:
            await self.open()
        # Those that hang, too: what they asked is not answered.
        for connection in list(self.connections):
            connection.abort()

    def note(self, at: int, node: bytes, account: int, version: int, status: int) -> None:
        self.file.write(f"{at} {node.decode()} {account} {version} {status}\n")


class Connection(asyncio.Protocol):
    def __init__(self, receiver: Receiver):
        self.receiver, self.buffer = receiver, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.receiver.connections.add(transport)

    def connection_lost(self, _) -> None:
        self.receiver.connections.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, self.buffer = self.buffer[: end + 4], self.buffer[end + 4 :]
            self.one(head)
        if len(self.buffer) > HEAD_BYTES_MAX:
            self.transport.abort()

    def one(self, head: bytes) -> None:
        asked, key, mode = REQUEST.match(head), KEY.search(head), self.receiver.mode
        if not asked or not key or asked[2] != key[1]:
            # Seen by whoever judges: no such version was ever told.
            self.receiver.note(int(time.time() * 1e6), asked[1] if asked else b"-", 0, 0, 400)
            return self.answer(400)
        status = {"well": 200, "slow": 200, "fail": 500}.get(mode, 0)
        order = (int(time.time() * 1e6), asked[1], int(key[1]), int(key[2]))
        if mode == "hang":
            return self.receiver.note(*order, status)
        wait = self.receiver.random.uniform(*SLOW_SECONDS) if mode == "slow" else ANSWER_SECONDS
        asyncio.get_running_loop().call_later(wait, self.take, order, status)

    def take(self, order: tuple[int, bytes, int, int], status: int) -> None:
        """Written down before it is answered: an order that its sender knows delivered must not be missing."""
        if self.transport.is_closing():
            return self.receiver.note(*order, 0)
        self.receiver.note(*order, status)
        if status:
            self.answer(status)
        else:
            self.transport.write(b"\x00\x01no such protocol\r\n\r\n" * 8)

    def answer(self, status: int) -> None:
        self.transport.write(b"HTTP/1.1 %d Told\r\nContent-Length: 0\r\n\r\n" % status)


if __name__ == "__main__":
    # It stands for another machine, whose work takes nothing from this one's.
    os.nice(10)
    asyncio.run(Receiver(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).run())
