"""The one way to Redis: every call has a deadline, and after a failed one Redis is left alone for a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from cache.metrics import CacheMetrics

_log = logging.getLogger(__name__)
T = TypeVar("T")


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
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._skip_s = skip_s
        self._clock = clock
        self._skip_until = 0.0

    @property
    def skipped(self) -> bool:
        """Whether a call would be refused now because one failed within the last second."""
        return self._clock() < self._skip_until

    async def call(self, work: Callable[[Redis], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """What `work` returns; raises RedisSkipped, or RedisFull where only writing is refused."""
        if self.skipped:
            self._metrics.redis_skipped.inc()
            raise RedisSkipped("skipped")
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await work(self._redis)
        except OutOfMemoryError as error:
            self._metrics.redis_errors.labels("full").inc()
            raise RedisFull("full") from error
        except (RedisError, OSError) as error:
            await self._leave_alone(_kind(error))
            raise RedisSkipped("failed") from error

    async def _leave_alone(self, kind: str) -> None:
        self._metrics.redis_errors.labels(kind).inc()
        if not self.skipped:
            _log.warning("redis_skipped", extra={"kind": kind})
        self._skip_until = self._clock() + self._skip_s
        # What is still open may lead to a server that is gone or no longer the primary.
        with contextlib.suppress(RedisError, OSError):
            await self._pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()


def _kind(error: Exception) -> str:
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "timeout"
    if isinstance(error, BusyLoadingError):
        return "loading"
    if isinstance(error, ReadOnlyError):
        return "read_only"
    return "response" if isinstance(error, ResponseError) else "connection"
