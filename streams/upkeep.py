"""Removes what is kept only for a time. One worker does it at a time; the others find it done.

Never by age: `case_seen` (goes with its case), `effect` and its attempts (whoever looks for what was sent must find it)
and `audit`.
"""

import asyncio
import logging
from dataclasses import dataclass

import asyncpg

from streams.metrics import StreamMetrics
from streams.outages import DATABASE_ERRORS
from streams.waiting import set_within

log = logging.getLogger(__name__)

_DAY_S = 24 * 3600.0
_LOCK = 0x0517_0003  # a class of advisory locks, beside those of the relay
_AT_ONCE = 1000
_TRY_LOCK = "select pg_try_advisory_lock($1::int, 0)"
_UNLOCK = "select pg_advisory_unlock($1::int, 0)"


def _remove(table: str, since: str) -> str:
    """The oldest rows of a table that are older than $1 seconds, $2 at most, and how many they were."""
    return (
        f"with gone as (delete from {table} where ctid = any(array(select ctid from {table}"  # noqa: S608 - constants
        f" where {since} < now() - make_interval(secs => $1) order by {since} limit $2)) returning 1)"
        " select count(*) from gone"
    )


_STATEMENTS = {
    "idempotency": _remove("idempotency", "created_at"),
    "inbox": _remove("inbox", "seen_at"),
    "stray_record": _remove("stray_record", "seen_at"),
    "dropped_event": _remove("dropped_event", "dropped_at"),
    "effect_check": _remove("effect_check", "at"),
}


@dataclass(frozen=True, slots=True)
class UpkeepLimits:
    """How long what is kept, in seconds; `every_s` is how often somebody looks.

    `idempotency_s` is how long a form may repeat a post; `inbox_s` must be more than a recipient can be away or set
    back, or what it says again is taken for news.
    """

    idempotency_s: float = 7 * _DAY_S
    inbox_s: float = 90 * _DAY_S
    stray_record_s: float = 90 * _DAY_S
    dropped_event_s: float = 365 * _DAY_S
    effect_check_s: float = 365 * _DAY_S
    every_s: float = 600.0
    statement_timeout_s: float = 30.0

    def kept_s(self, table: str) -> float:
        """How long rows of this table are kept."""
        kept: float = getattr(self, f"{table}_s")
        return kept


class Upkeep:
    """`run` returns when `stop` is set, and never because the database is away."""

    def __init__(self, pool: asyncpg.Pool, metrics: StreamMetrics, limits: UpkeepLimits | None = None) -> None:
        self._pool = pool
        self._metrics = metrics
        self._limits = limits or UpkeepLimits()

    async def run(self, stop: asyncio.Event) -> None:
        """Look, remove, wait; a database that fails is asked again the next time."""
        while not stop.is_set():
            try:
                await self.once(stop)
            except DATABASE_ERRORS as error:
                log.warning("upkeep.failed", extra={"error": type(error).__name__})
            await set_within(stop, self._limits.every_s)

    async def once(self, stop: asyncio.Event) -> dict[str, int] | None:
        """Remove all that is old now, and say how many rows of which table; None when another worker is at it."""
        timeout_s = self._limits.statement_timeout_s
        async with self._pool.acquire(timeout=timeout_s) as connection:
            if not await connection.fetchval(_TRY_LOCK, _LOCK, timeout=timeout_s):
                return None
            removed = {}
            for table, statement in _STATEMENTS.items():
                removed[table] = await self._remove(connection, table, statement, stop)
            # Not in a finally: the pool ends the lock with everything else when this was cut short.
            await connection.execute(_UNLOCK, _LOCK, timeout=timeout_s)
            return removed

    async def _remove(self, connection: asyncpg.Connection, table: str, statement: str, stop: asyncio.Event) -> int:
        """By the thousand, each a transaction of its own: nobody who writes to the table waits long."""
        total = 0
        gone = _AT_ONCE
        while gone == _AT_ONCE and not stop.is_set():
            gone = await connection.fetchval(
                statement, self._limits.kept_s(table), _AT_ONCE, timeout=self._limits.statement_timeout_s
            )
            total += gone
            self._metrics.upkeep_removed.labels(table).inc(gone)
        return total
