"""A relay in front of Postgres that understands its messages: it counts what is executed, and can cut in mid-row."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

# PostgreSQL's documentation, 55.7 Message Formats: requests for encryption come before the startup message.
_ENCRYPTION_REQUESTS = {80877103, 80877104}


@dataclass(slots=True)
class _Session:
    """What one connection has prepared and bound, by name."""

    statements: dict[bytes, str] = field(default_factory=dict)
    portals: dict[bytes, bytes] = field(default_factory=dict)


class PostgresGate:
    """Relays to the Postgres of `url`. `executed` is the text of every statement executed through it, in order."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut_within: str | None = None
        self.executed: list[str] = []
        self.cuts = 0

    @property
    def url(self) -> str:
        """The same URL, through the gate."""
        user = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    def count(self, text: str) -> int:
        """How often a statement with that text was executed."""
        return sum(text in statement for statement in self.executed)

    def cut_next_row(self, text: str) -> None:
        """Reset the connection in the middle of the next row that answers a statement with that text."""
        self._cut_within = text

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream, downstream = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        session = _Session()
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                downstream.write(await self._startup(reader, writer))
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._questions(reader, downstream, session))
                    both.create_task(self._answers(upstream, writer, session))
        finally:
            self._tasks.discard(task)
            downstream.close()
            writer.close()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            head = await reader.readexactly(8)
            length, code = struct.unpack("!ii", head)
            if code not in _ENCRYPTION_REQUESTS:
                return head + await reader.readexactly(length - 8)
            writer.write(b"N")

    async def _questions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: _Session) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head, body = await _message(reader)
                match head[:1]:
                    case b"P":
                        name, text, _ = body.split(b"\0", 2)
                        session.statements[name] = text.decode()
                    case b"B":
                        portal, name, _ = body.split(b"\0", 2)
                        session.portals[portal] = name
                    case b"E":
                        self.executed.append(session.statements[session.portals[body.split(b"\0", 1)[0]]])
                writer.write(head + body)
                await writer.drain()
        writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: _Session) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head, body = await _message(reader)
                if head[:1] == b"D" and self._cuts(session):
                    self.cuts += 1
                    writer.write(head + body[: len(body) // 2])
                    await writer.drain()
                    _reset_when_closed(writer)
                    break
                writer.write(head + body)
                await writer.drain()
        writer.close()

    def _cuts(self, session: _Session) -> bool:
        last = session.statements.get(session.portals.get(b"", b""), "")
        if self._cut_within is None or self._cut_within not in last:
            return False
        self._cut_within = None
        return True


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head, await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


def _reset_when_closed(writer: asyncio.StreamWriter) -> None:
    """Have the close send RST in place of FIN, as a crashed host or a firewall does."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
