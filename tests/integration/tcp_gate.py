"""A TCP relay in front of a server, which a test can shut or let hang."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit, urlunsplit


class Gate:
    """Relays to the server of `url`. Shut, it refuses and cuts; held, it takes connections and answers nothing."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

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
                        both.create_task(self._pump(upstream, writer))
                finally:
                    downstream.close()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
