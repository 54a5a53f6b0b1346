"""A TCP proxy in front of a server: it delays, holds or cuts what passes, and can be led to another server."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass

_MOST_WAITING = 4 << 20  # bytes of one direction of one connection, before its sender is made to wait


@dataclass(frozen=True, slots=True)
class Delay:
    """The share of chunks that are kept back, and the longest time (seconds). Order within a connection is kept."""

    share: float = 0.0
    longest_s: float = 0.0


NONE = Delay()


class Proxy:
    """Relays to `port` of this machine; `requests` and `replies` say how much of each is kept back."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self.requests = NONE
        self.replies = NONE
        self.asked = 0
        self.delayed = 0
        self.port = 0
        self._chance = chance
        self._upstream = port
        self._held = False
        self._shut = False
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        self.cut()

    def cut(self) -> None:
        """Reset every connection, in whatever it is."""
        for side in list(self._sides):
            side.drop()

    def shut(self, shut: bool) -> None:
        """Refuse whoever comes, as a server that is down."""
        self._shut = shut
        if shut:
            self.cut()

    def hold(self, held: bool) -> None:
        """Let nothing pass in either direction, or let it all go on."""
        self._held = held
        for side in list(self._sides):
            side.flush()

    def lead_to(self, port: int) -> None:
        """From now on another server, also for those who were connected to the one before."""
        self._upstream = port
        self.cut()

    # What a connection tells

    @property
    def is_held(self) -> bool:
        return self._held

    def met(self, client: _Side) -> None:
        if self._shut:
            client.drop()
            return
        self._sides.add(client)
        task = asyncio.create_task(self._connect(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def parted(self, side: _Side) -> None:
        self._sides.discard(side)

    def patience(self, *, reply: bool) -> float:
        """How long the next chunk is kept back."""
        self.asked += not reply
        delay = self.replies if reply else self.requests
        if self._chance.random() >= delay.share:
            return 0.0
        self.delayed += 1
        return self._chance.uniform(0.0, delay.longest_s)

    async def _connect(self, client: _Side) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_connection(lambda: _Side(self, client), "127.0.0.1", self._upstream)
        except OSError:
            client.drop()
            return
        self._sides.add(server)
        client.join(server)


class _Side(asyncio.Protocol):
    """One end of a connection. What it receives goes to its peer, when its time has come."""

    def __init__(self, proxy: Proxy, client: _Side | None = None) -> None:
        self._proxy = proxy
        self._is_server = client is not None
        self._peer = client
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._is_server:
            self._proxy.met(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self.drop()

    def join(self, server: _Side) -> None:
        """The server answered; if the client has gone meanwhile, so does the server."""
        self._peer = server
        if self._gone:
            server.drop()
        self.flush()

    def data_received(self, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        due = now + self._proxy.patience(reply=self._is_server)
        self._waiting.append((max(due, self._waiting[-1][0]) if self._waiting else due, data))
        self._bytes += len(data)
        self.flush()
        if self._bytes > _MOST_WAITING and self._transport is not None:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None and self._peer._transport is not None and not self._peer._gone:
            self._peer._transport.resume_reading()

    def flush(self) -> None:
        """Pass on what is due; the rest waits for its time, or until nothing is held any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        peer = self._peer
        if self._proxy.is_held or self._gone or peer is None or peer._transport is None:
            return
        loop = asyncio.get_running_loop()
        paused = self._bytes > _MOST_WAITING
        while self._waiting and self._waiting[0][0] <= loop.time():
            _, data = self._waiting.popleft()
            self._bytes -= len(data)
            peer._transport.write(data)
        if self._waiting:
            self._timer = loop.call_at(self._waiting[0][0], self.flush)
        if paused and self._bytes <= _MOST_WAITING and self._transport is not None:
            self._transport.resume_reading()

    def drop(self) -> None:
        """End both ends at once; what was on its way is lost."""
        if self._gone:
            return
        self._gone = True
        self._waiting.clear()
        self._proxy.parted(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._peer is not None:
            self._peer.drop()
