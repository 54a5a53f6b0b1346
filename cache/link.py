"""The one way to Redis: every call has a deadline, and after a failed one Redis is left alone for a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from cache.metrics import CacheMetrics
from cache.wire import Command, Wire

_log = logging.getLogger(__name__)
T = TypeVar("T")
# What a reply of another kind than its command has makes of those who read it: what answers there is no Redis.
ODD_REPLY = (AttributeError, LookupError, TypeError, ValueError)


class RedisSkipped(Exception):
    """Redis did not answer as it should, or did not a moment ago. Whoever asked goes on without it."""


class RedisFull(RedisSkipped):
    """Redis takes no more; what is in it can still be read."""


class RedisLink:
    """A bounded number of connections to one Redis or Valkey, shared by every silo of a process.

    `timeout_s` is what a hung Redis costs a caller at most. `close` it after everything that uses it has stopped.
    """

    def __init__(
        self,
        url: str,
        metrics: CacheMetrics,
        *,
        timeout_s: float = 0.1,
        connections: int = 32,
        skip_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # No time-out of the client's own: `call` cancels what takes too long, and that closes its connection.
        self._pool = ConnectionPool.from_url(
            url,
            max_connections=connections,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._redis = Redis(connection_pool=self._pool)
        self._idle: list[Wire] = []
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._skip_s = skip_s
        self._clock = clock
        self._skip_until = 0.0
        self._is_pool_stale = False

    @property
    def skipped(self) -> bool:
        """Whether a call would be refused now because one failed within the last second."""
        return self._clock() < self._skip_until

    async def call(self, work: Callable[[Redis], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """What `work` returns, which does no more than ask and read; raises RedisSkipped, or RedisFull where only
        writing is refused.
        """
        return await self._guarded(lambda: self._called(work), timeout_s or self._timeout_s)

    async def _called(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        if self._is_pool_stale:
            self._is_pool_stale = False
            with contextlib.suppress(RedisError, OSError):
                await self._pool.disconnect(inuse_connections=False)
        return await work(self._redis)

    def begin(self, commands: Sequence[Command], told: Callable[[list[Any] | None], None]) -> bool:
        """Send one batch of reads. `told`, which must not raise, gets the replies as Redis sends them, or None.

        False when it cannot be sent now: no connection is open, which `ask` changes, or Redis is skipped. It costs a
        fraction of `call`. Each batch has a connection of its own while it lasts.
        """
        wire = None if self.skipped else self._open_wire()
        if wire is None:
            return False
        timer = asyncio.get_running_loop().call_later(self._timeout_s, wire.cut, TimeoutError())

        def tell(outcome: list[Any] | Exception) -> None:
            timer.cancel()
            told(self._replies_of(wire, outcome))

        wire.begin(commands, tell)
        return True

    def _replies_of(self, wire: Wire, outcome: list[Any] | Exception) -> list[Any] | None:
        error = outcome if isinstance(outcome, Exception) else _refusal_in(outcome)
        if not isinstance(outcome, Exception):
            self._idle.append(wire)
        if error is None:
            return cast("list[Any]", outcome)
        self._leave_alone(_kind(error))
        return None

    async def ask(
        self, commands: Sequence[Command], read: Callable[[list[Any]], T], *, timeout_s: float | None = None
    ) -> T:
        """What `read` makes of the replies, for a caller that waits, over a connection that is opened where there is
        none; raises RedisSkipped, also for a reply that `read` fails on.
        """

        async def work() -> T:
            replies = await self._exchanged(commands)
            if (error := _refusal_in(replies)) is not None:
                raise error
            return read(replies)

        return await self._guarded(work, timeout_s or self._timeout_s)

    async def send(
        self, commands: Sequence[Command], script: str, read: Callable[[list[Any]], T], *, timeout_s: float
    ) -> T:
        """What `read` makes of the replies to one batch of writes by a script, which Redis is given where it has
        forgotten it.

        What it has no room for has an OutOfMemoryError for its reply; any other refusal raises RedisSkipped, and so
        does a reply that `read` fails on.
        """

        async def work() -> T:
            replies = await self._exchanged(commands)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                _, *replies = await self._exchanged([("SCRIPT", "LOAD", script), *commands])
            for reply in replies:
                if isinstance(reply, RedisError) and not isinstance(reply, OutOfMemoryError):
                    raise reply
            return read(replies)

        return await self._guarded(work, timeout_s)

    def _open_wire(self) -> Wire | None:
        while self._idle:
            wire = self._idle.pop()
            if wire.is_open:
                return wire
        return None

    async def _exchanged(self, commands: Sequence[Command]) -> list[Any]:
        wire = self._open_wire()
        if wire is None:
            wire = await Wire.open(self._pool.make_connection())  # type: ignore[no-untyped-call] # the client leaves it bare
        try:
            replies = await wire.ask(commands)
        except BaseException:
            # cancelled at its deadline too: replies to this batch must not be taken for those to the next
            wire.close()
            raise
        self._idle.append(wire)
        return replies

    async def _guarded(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        if self.skipped:
            self._metrics.redis_skipped.inc()
            raise RedisSkipped("skipped")
        try:
            async with asyncio.timeout(timeout_s):
                return await work()
        except OutOfMemoryError as error:
            self._metrics.redis_errors.labels("full").inc()
            raise RedisFull("full") from error
        except (RedisError, OSError) as error:
            self._leave_alone(_kind(error))
            raise RedisSkipped("failed") from error
        except ODD_REPLY:
            self.distrust()
            # Without its cause: that one may repeat what came.
            raise RedisSkipped("odd") from None

    def distrust(self) -> None:
        """What came is not what Redis replies to the command that was sent."""
        self._leave_alone("response")

    def _leave_alone(self, kind: str) -> None:
        self._metrics.redis_errors.labels(kind).inc()
        if not self.skipped:
            _log.warning("redis_skipped", extra={"kind": kind})
        self._skip_until = self._clock() + self._skip_s
        # What is still open may lead to a server that is gone or no longer the primary.
        self._close_idle()
        self._is_pool_stale = True

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        self._close_idle()
        await self._redis.aclose()
        await self._pool.disconnect()


def _refusal_in(replies: Sequence[Any]) -> RedisError | None:
    return next((reply for reply in replies if isinstance(reply, RedisError)), None)


def _kind(error: Exception) -> str:
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "timeout"
    if isinstance(error, BusyLoadingError):
        return "loading"
    if isinstance(error, ReadOnlyError):
        return "read_only"
    return "response" if isinstance(error, ResponseError) else "connection"
