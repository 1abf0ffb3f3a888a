"""HTTP/1.1 to one billing node: connections kept and used again, no retries, no cleverness."""

import asyncio
import dataclasses
import json


@dataclasses.dataclass(slots=True)
class Answer:
    status: int
    body: dict | None
    retry_after: float


class NoAnswer(Exception):
    """Nobody knows whether the request did anything. The text says how it failed."""


class Door:
    """The address of a node. At most as many connections as requests at once."""

    def __init__(self, address: str):
        self.address = address
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str, body: object = None, key: str = "", seconds: float = 2.0) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await self.exchange(self.request(method, path, body, key))
        except TimeoutError:
            raise NoAnswer("timeout") from None
        except ConnectionRefusedError:
            raise NoAnswer("refused") from None
        except (OSError, EOFError, ValueError) as error:
            raise NoAnswer("cut" if isinstance(error, (OSError, EOFError)) else "garbled") from error

    async def exchange(self, request: bytes) -> Answer:
        reader, writer = await self.connection()
        kept = False
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            content = await reader.readexactly(int(fields["content-length"]))
            kept = fields.get("connection", "").lower() != "close"
            body = json.loads(content) if "json" in fields.get("content-type", "") else None
            return Answer(int(head[0].split()[1]), body, float(fields.get("retry-after", 0)))
        except KeyError:
            raise ValueError("an answer without a length") from None
        finally:
            # Also when it is cut by a time limit: what comes later must not be taken for the next answer.
            if kept:
                self.idle.append((reader, writer))
            else:
                writer.close()

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.idle:
            reader, writer = self.idle.pop()
            # The node may have ended it since, as it does when it drains.
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port, limit=1 << 20)

    def request(self, method: str, path: str, body: object, key: str) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.address}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        if key:
            head += f"Idempotency-Key: {key}\r\n"
        return head.encode() + b"\r\n" + content

    def close(self) -> None:
        while self.idle:
            self.idle.pop()[1].close()
