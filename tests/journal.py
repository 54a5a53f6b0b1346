"""The journal of failpoints: a third party writes down which process reached which one, before that process dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One failpoint as it was reached, and what `look` saw at that moment."""

    name: str
    pid: int
    work: Any


async def _nothing() -> None:
    return None


@dataclass
class Journal:
    """Listens where processes report their failpoints. `look` says what work is in flight when one is reached."""

    look: Callable[[], Awaitable[Any]] = _nothing
    path: Path | None = None
    address: str = ""
    seen: list[Seen] = field(default_factory=list)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[Journal]:
        """Listen on a free port, or at `path` when one was given."""
        if self.path is None:
            server = await asyncio.start_server(self._listen, "127.0.0.1", 0)
            self.address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        else:
            server = await asyncio.start_unix_server(self._listen, self.path)
            self.address = f"unix:{self.path}"
        async with server:
            yield self

    async def saw(self, name: str, pid: int, *, timeout_s: float = 30.0) -> Seen:
        """Wait for a failpoint of one process; return what was seen."""
        deadline = time.monotonic() + timeout_s
        while True:
            for seen in self.seen:
                if (seen.name, seen.pid) == (name, pid):
                    return seen
            assert time.monotonic() < deadline, f"{name} was not reached by {pid}"
            await asyncio.sleep(0.02)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if line := await reader.readline():
                name, _hit, pid, _action = line.decode().split()
                self.seen.append(Seen(name, int(pid), await self.look()))
                writer.write(b"written down\n")
                await writer.drain()
        finally:
            writer.close()
