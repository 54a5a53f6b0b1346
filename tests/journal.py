"""The journal of failpoints: a third party writes down which process reached which one, before that process dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One failpoint as it was reached, and what `look` saw at that moment."""

    name: str
    pid: int
    work: Any


@dataclass
class Journal:
    """Listens where processes report their failpoints. `look` says what work is in flight when one is reached."""

    look: Callable[[], Awaitable[Any]]
    address: str = ""
    seen: list[Seen] = field(default_factory=list)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[Journal]:
        server = await asyncio.start_server(self._listen, "127.0.0.1", 0)
        self.address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if line := await reader.readline():
                name, _hit, pid, _action = line.decode().split()
                self.seen.append(Seen(name, int(pid), await self.look()))
                writer.write(b"written down\n")
                await writer.drain()
        finally:
            writer.close()
