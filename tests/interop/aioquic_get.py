#!/usr/bin/env python3
"""GETs over HTTP/3 by aioquic, a client nobody here wrote. Prints one line of JSON for each URL: protocol, whether the session
was resumed, status, fields, bytes of content. All URLs are fetched in turn, each on a connection of its own, with the
latest session ticket: two nodes with one secret resume each other's.

    aioquic_get.py https://localhost:8443/ [https://localhost:8444/ ...]
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


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.alpn = ""
        self.fields: list[tuple[str, str]] = []
        self.content = 0
        self.done = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.alpn = event.alpn_protocol
        if isinstance(event, (ConnectionTerminated, StreamReset)) and not self.done.done():
            self.done.set_exception(RuntimeError(f"ended with {event.error_code:#x}"))
        for said in self.http.handle_event(event):
            if isinstance(said, HeadersReceived) and not self.fields:
                self.fields = [(name.decode(), value.decode("latin-1")) for name, value in said.headers]
            if isinstance(said, DataReceived):
                self.content += len(said.data)
            if isinstance(said, (HeadersReceived, DataReceived)) and said.stream_ended and not self.done.done():
                self.done.set_result(None)

    async def get(self, authority: str, path: str) -> None:
        stream = self._quic.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", path), ("user-agent", "aioquic")]
        self.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields], end_stream=True)
        self.transmit()
        await self.done


async def fetch(url: str, tickets: list) -> dict:
    parts = urllib.parse.urlsplit(url)
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    configuration.server_name = parts.hostname
    if tickets:
        configuration.session_ticket = tickets[-1]
    options = {"create_protocol": Client, "session_ticket_handler": tickets.append}
    async with connect(parts.hostname, parts.port, configuration=configuration, **options) as client:
        await client.get(parts.netloc, parts.path or "/")
        fields = dict(client.fields)
        return {
            "protocol": client.alpn,
            "resumed": client._quic.tls.session_resumed,
            "status": int(fields.pop(":status")),
            "fields": fields,
            "bytes": client.content,
        }


async def main(urls: list[str]) -> None:
    tickets: list = []
    for url in urls:
        print(json.dumps(await asyncio.wait_for(fetch(url, tickets), SECONDS_MAX)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
