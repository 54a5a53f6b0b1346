"""Brings a silo's change log to Redis, row by row, so that an entry counts only while nothing has touched it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import asyncpg
import orjson

from cache.link import RedisSkipped
from cache.metrics import CacheMetrics
from cache.server import DATABASE_ERRORS, UNREADABLE
from cache.state import Position, State, word
from cache.store import Store

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 5.0
_QUERY_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 1.0
_ROWS_A_LOOK = 40
_PAUSE_AFTER_ERROR_S = 1.0
# The bound that every answer carries grows until the next beat: with each look that shows no more, but not more often.
_BEAT_EVERY_S = 0.05

# One statement, so one snapshot. $1 is the seq that Redis is at. The timeline is read from where the primary writes
# now: pg_control_checkpoint() would tell of a promotion only minutes later.
_TIP_SQL = """
select
    (select system_identifier from pg_control_system())::text
        || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as server,
    p.epoch, p.seq, p.id, p.definition,
    (select c.id from change_log c where c.seq = $1::int8) as id_there,
    (
        select coalesce(json_agg(json_build_array(c.seq, c.id, c.tags) order by c.seq), '[]')
        from (select seq, id, tags from change_log where seq > $1::int8 order by seq limit $2::int8) c
    )::text as rows
from progress p
"""
_MINT_SQL = """
update progress set epoch = $1 where epoch = $2 returning epoch, seq, id, definition
"""


class _Unprepared(Exception):
    """The silo has no tables yet."""


@dataclass(frozen=True, slots=True)
class _Row:
    seq: int
    id: str
    tags: list[str]


@dataclass(frozen=True, slots=True)
class _Tip:
    """The primary at one moment: who it is, how far it is, and its change log from where Redis is."""

    server: str
    position: Position
    id_there: str | None
    rows: list[_Row]

    def unconnected(self, state: State | None) -> str | None:
        """Why what Redis knows cannot be carried on from, or None."""
        if state is None:
            return "no_state"
        if state.server != self.server:
            return "server"
        if state.epoch != self.position.epoch:
            return None  # the applier or another invalidator has begun one: Redis only has to follow
        if state.seq == self.position.seq:
            return None if state.position == self.position else "other_life"
        if self.id_there != state.position.id:
            return "other_life"
        if not self.rows or self.rows[0].seq != state.seq + 1:
            return "log_trimmed"
        return None


class Invalidator:
    """Follows one silo's primary. Any number may run; they do not need to know of each other.

    It writes to Redis only by scripts that refuse a step whose ground has moved, and to the silo only a new epoch, so
    `primary_url` is that of a user who may update `progress`.
    """

    def __init__(
        self,
        silo: str,
        primary_url: str,
        store: Store,
        metrics: CacheMetrics,
        *,
        poll_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._silo = silo
        self._url = primary_url
        self._store = store
        self._metrics = metrics
        self._poll_s = poll_s
        self._clock = clock
        self._connection: asyncpg.Connection | None = None
        self._next_beat = 0.0
        self._failing: str | None = None

    async def run(self) -> None:
        """Follow until cancelled; what fails is tried again for as long as that takes."""
        try:
            while True:
                pause_s = await self._round()
                await asyncio.sleep(pause_s)
        finally:
            await self.close()

    async def _round(self) -> float:
        """One look and what follows from it; returns how long to wait for the next."""
        try:
            more = await self.step()
        except RedisSkipped:
            self._failed("redis")
            return self._poll_s
        except _Unprepared:
            self._failed("unprepared")
            return _PAUSE_AFTER_ERROR_S
        except (*DATABASE_ERRORS, *UNREADABLE):
            self._failed("primary")
            await self.close()
            return _PAUSE_AFTER_ERROR_S
        if self._failing is not None:
            _log.info("invalidator_follows_again", extra={"silo": self._silo})
            self._failing = None
        return 0.0 if more else self._poll_s

    def _failed(self, at: str) -> None:
        self._metrics.invalidator_errors.labels(self._silo, at).inc()
        if self._failing != at:
            _log.warning("invalidator_cannot_follow", extra={"silo": self._silo, "at": at})
            self._failing = at

    async def step(self) -> bool:
        """Bring Redis nearer to the primary by one look; True if it is not known to be there yet.

        Redis is read first: what is then found at the primary is no older than what Redis had.
        """
        raw, time_ms = await self._store.look()
        state = State.parse(raw)
        tip = await self._tip(state.seq if state is not None else -1)
        # Without a state that can be read, only the very same bytes may be replaced.
        expected = state.position.expected if state is not None else raw or b""
        reason = tip.unconnected(state)
        if reason is not None:
            return await self._mint(expected, tip, time_ms, reason)
        if state is None or state.epoch != tip.position.epoch:
            return await self._begin(expected, tip, tip.position, time_ms, "followed")
        self._metrics.behind.labels(self._silo).set(tip.position.seq - state.seq)
        return await self._apply(state.position, tip, time_ms)

    async def _apply(self, at: Position, tip: _Tip, time_ms: int) -> bool:
        """Apply the rows in their order; at the tip, say when Redis had all of it."""
        for row in tip.rows:
            outcome = await self._store.apply(at, row.seq, row.id, row.tags)
            if outcome == "lost":
                # The tags went and the state did not, as under a policy that evicts what has no TTL.
                return await self._mint(at.expected, tip, time_ms, "tags_lost")
            if outcome != "applied":
                self._metrics.refused.labels(self._silo, "apply").inc()
                return True
            self._metrics.applied.labels(self._silo).inc()
            at = replace(at, seq=row.seq, id=row.id)
        if at != tip.position:
            return True
        if self._clock() >= self._next_beat:
            # `time_ms` was read before the tip was, so this position was the newest one at that time.
            if await self._store.beat(at, time_ms) == "beaten":
                self._metrics.state_time.labels(self._silo).set(time_ms / 1000)
            self._next_beat = self._clock() + _BEAT_EVERY_S
        return False

    async def _mint(self, expected: bytes, tip: _Tip, time_ms: int, reason: str) -> bool:
        """Give the silo a new epoch, in its own database first: a fill read under the old one can then never count."""
        connection = await self._connected()
        row = await connection.fetchrow(_MINT_SQL, secrets.token_hex(16), tip.position.epoch, timeout=_QUERY_TIMEOUT_S)
        if row is None:
            return True  # another was quicker
        return await self._begin(expected, tip, Position.of(row), time_ms, reason)

    async def _begin(self, expected: bytes, tip: _Tip, position: Position, time_ms: int, reason: str) -> bool:
        outcome = await self._store.begin_epoch(expected, position, tip.server, time_ms)
        if outcome == "used":
            # The silo went back in time, to an epoch whose entries may still be there.
            return await self._mint(expected, replace(tip, position=position), time_ms, "epoch_used")
        if outcome == "begun":
            self._metrics.epochs.labels(self._silo, reason).inc()
            _log.info("silo_epoch_begun", extra={"silo": self._silo, "reason": reason})
        else:
            self._metrics.refused.labels(self._silo, "epoch").inc()
        return True

    # The primary

    async def _tip(self, seq: int) -> _Tip:
        connection = await self._connected()
        try:
            row = await connection.fetchrow(_TIP_SQL, seq, _ROWS_A_LOOK, timeout=_QUERY_TIMEOUT_S)
        except asyncpg.UndefinedTableError:
            row = None
        if row is None:
            raise _Unprepared
        rows = [_Row(number, word(name), tags) for number, name, tags in orjson.loads(row["rows"])]
        id_there = None if row["id_there"] is None else word(row["id_there"])
        return _Tip(word(row["server"]), Position.of(row), id_there, rows)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(
                self._url,
                timeout=_CONNECT_TIMEOUT_S,
                server_settings={
                    "application_name": f"silogate invalidator of {self._silo}",
                    "search_path": f"silo_{self._silo}",
                },
            )
        return self._connection

    async def close(self) -> None:
        """Give up the connection; the next step makes another. `run` does this at its end."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(*DATABASE_ERRORS):
            await connection.close(timeout=_CLOSE_TIMEOUT_S)
        connection.terminate()
