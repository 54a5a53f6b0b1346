"""A TCP relay in front of a server, which a test can shut, let hang, or make lose what the server answers."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit, urlunsplit


class Gate:
    """Relays to the server of `url`. Shut, it refuses and cuts; held, it takes connections and answers nothing.

    While `loses_answers` is set, what is asked arrives and what the server answers does not.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.loses_answers = False
        self.lost_answers = 0

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """The same URL, through the gate."""
        user = f"{self._parts.netloc.rpartition('@')[0]}@" if "@" in self._parts.netloc else ""
        return urlunsplit(self._parts._replace(netloc=f"{user}127.0.0.1:{self._port}"))

    async def open(self) -> None:
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        """What was held goes on."""
        self._open.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._open.wait()
            with contextlib.suppress(OSError):
                upstream, downstream = await asyncio.open_connection(self._parts.hostname, self._parts.port)
                try:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._pump(reader, downstream))
                        both.create_task(self._pump(upstream, writer, answers=True))
                finally:
                    downstream.close()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                if answers and self.loses_answers:
                    self.lost_answers += 1
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()
