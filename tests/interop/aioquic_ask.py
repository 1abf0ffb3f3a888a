#!/usr/bin/env python3
"""Requests over HTTP/3 by aioquic, a client nobody here wrote. Prints one line of JSON for each: protocol, whether the session
was resumed, status, fields, bytes of content.

    aioquic_ask.py https://localhost:8443/ [https://localhost:8444/ ...]

GETs each URL in turn, on a connection of its own, with the latest session ticket: two nodes with one secret resume each
other's.

    aioquic_ask.py --requests https://localhost:8443

Reads lines of JSON, `{"method": .., "path": .., "fields": {..}, "content": ".."}`, and answers each before it reads the next, all on
one connection; an answer has its content, too.
"""

import asyncio
import json
import ssl
import sys
import urllib.parse

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated, StreamReset

SECONDS_MAX = 20


class Exchange:
    def __init__(self):
        self.fields: list[tuple[str, str]] = []
        self.content = b""
        self.done = asyncio.get_running_loop().create_future()

    def fail(self, error: int) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"ended with {error:#x}"))


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.alpn = ""
        self.exchanges: dict[int, Exchange] = {}

    def quic_event_received(self, event) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.alpn = event.alpn_protocol
        if isinstance(event, ConnectionTerminated):
            for exchange in self.exchanges.values():
                exchange.fail(event.error_code)
        if isinstance(event, StreamReset) and event.stream_id in self.exchanges:
            self.exchanges[event.stream_id].fail(event.error_code)
        for said in self.http.handle_event(event):
            exchange = self.exchanges.get(getattr(said, "stream_id", None))
            if exchange is None:
                continue
            if isinstance(said, HeadersReceived) and not exchange.fields:
                exchange.fields = [(name.decode(), value.decode("latin-1")) for name, value in said.headers]
            if isinstance(said, DataReceived):
                exchange.content += said.data
            if isinstance(said, (HeadersReceived, DataReceived)) and said.stream_ended and not exchange.done.done():
                exchange.done.set_result(None)

    async def ask(self, method: str, authority: str, path: str, fields: dict, content: bytes) -> Exchange:
        stream = self._quic.get_next_available_stream_id()
        exchange = self.exchanges[stream] = Exchange()
        head = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path), ("user-agent", "aioquic")]
        head += [(name.lower(), value) for name, value in fields.items()]
        self.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in head], end_stream=not content)
        if content:
            self.http.send_data(stream, content, end_stream=True)
        self.transmit()
        await asyncio.wait_for(exchange.done, SECONDS_MAX)
        return exchange

    def told(self, exchange: Exchange) -> dict:
        fields = dict(exchange.fields)
        return {
            "protocol": self.alpn,
            "resumed": self._quic.tls.session_resumed,
            "status": int(fields.pop(":status")),
            "fields": fields,
            "bytes": len(exchange.content),
        }


def connected(parts: urllib.parse.SplitResult, tickets: list):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    configuration.server_name = parts.hostname
    if tickets:
        configuration.session_ticket = tickets[-1]
    options = {"create_protocol": Client, "session_ticket_handler": tickets.append}
    return connect(parts.hostname, parts.port, configuration=configuration, **options)


async def get_each(urls: list[str]) -> None:
    tickets: list = []
    for url in urls:
        parts = urllib.parse.urlsplit(url)
        async with connected(parts, tickets) as client:
            exchange = await client.ask("GET", parts.netloc, parts.path or "/", {}, b"")
            print(json.dumps(client.told(exchange)), flush=True)


async def answer_lines(base: str) -> None:
    parts = urllib.parse.urlsplit(base)
    loop = asyncio.get_running_loop()
    async with connected(parts, []) as client:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            request = json.loads(line)
            content = (request.get("content") or "").encode()
            exchange = await client.ask(request["method"], parts.netloc, request["path"], request["fields"], content)
            print(json.dumps(client.told(exchange) | {"content": exchange.content.decode("latin-1")}), flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(answer_lines(arguments[1]) if arguments[0] == "--requests" else get_each(arguments))
