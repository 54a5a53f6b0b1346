"""Lookups over the gateway's own cases: read on the primary each time, so a case committed a moment ago is seen."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import time
from collections.abc import Callable, Mapping

import asyncpg

from cache.answer import Answer, AsOf, Verdict
from cache.definition import MOST_ROWS, InvalidLookup, LookupDefinition, compile_single
from cache.metrics import CacheMetrics
from cache.server import DATABASE_ERRORS, leased

_log = logging.getLogger(__name__)
SILO = "cases"
_EPOCH = "live"


class UncachedLookup:
    """Answers one lookup over the table `cases`; nothing is kept. At most `queries` are asked at a time.

    `pool` reaches the gateway's primary with the gateway's schema in its search path.
    """

    def __init__(
        self,
        definition: LookupDefinition,
        pool: asyncpg.Pool,
        metrics: CacheMetrics,
        *,
        queries: int = 8,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if definition.silo != SILO:
            raise InvalidLookup(f"{definition.name} asks the silo {definition.silo}, not the gateway's cases")
        self.definition = definition
        self._sql = compile_single(definition)
        self._pool = pool
        self._metrics = metrics
        self._free = asyncio.Semaphore(queries)
        self._clock = clock

    async def answer(
        self, parameters: Mapping[str, object], *, timeout_s: float, min_as_of: AsOf | None = None
    ) -> Answer:
        """The answer as of now to normalised parameters; `cannot_tell` when the cases cannot be read in time.

        What `min_as_of` asks for is always met: every case committed before the question is seen.
        """
        del min_as_of
        started = time.perf_counter()
        values = [parameters.get(name) for name in self.definition.parameters]
        try:
            async with asyncio.timeout(timeout_s), self._free:
                row = await self._read(values)
        except (*DATABASE_ERRORS, ValueError) as error:
            # Only what kind of error: its message may repeat a parameter.
            _log.warning("cases_unreadable", extra={"lookup": self.definition.name, "error": type(error).__name__})
            row = None
        answer = self._cannot_tell() if row is None or row["n"] > MOST_ROWS else self._answer(row)
        self._metrics.answers.labels(self.definition.name, answer.source, answer.verdict).inc()
        self._metrics.seconds.labels(self.definition.name, answer.source).observe(time.perf_counter() - started)
        return answer

    async def _read(self, values: list[object]) -> asyncpg.Record:
        async with leased(self._pool) as connection:
            # Not `connection.transaction()`: its end would wait for a hung server, past any deadline.
            await connection.execute("begin read only")
            row = await connection.fetchrow(self._sql, *values)
            await connection.execute("commit")
            return row

    def _answer(self, row: asyncpg.Record) -> Answer:
        body = row["body"].encode()
        verdict: Verdict = "not_found" if body == b"[]" else "found"
        age_s = max(self._clock() - row["now"].timestamp(), 0.0)
        return Answer(
            verdict=verdict,
            results=body,
            as_of=AsOf(SILO, _EPOCH, 0, row["now"]),
            etag=f'W/"{hashlib.sha256(body).hexdigest()[:16]}{verdict[0]}"',
            age_s=age_s,
            staleness_bound_ms=int(age_s * 1000) + 1,
            source="bypass",
        )

    def _cannot_tell(self) -> Answer:
        as_of = AsOf(SILO, _EPOCH, 0, dt.datetime.fromtimestamp(self._clock(), dt.UTC))
        return Answer("cannot_tell", b"[]", as_of, 'W/"none"', 0.0, None, "bypass", "cases_unreadable")
