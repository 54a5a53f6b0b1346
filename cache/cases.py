"""Lookups over the gateway's own cases: read on the primary each time, so a case committed a moment ago is seen."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from cache.answer import Answer, AsOf, Verdict
from cache.batch import Batcher
from cache.definition import MOST_ROWS, InvalidLookup, LookupDefinition, compile_many
from cache.metrics import CacheMetrics
from cache.server import leased
from cache.singleflight import Flight

_log = logging.getLogger(__name__)
SILO = "cases"
_EPOCH = "live"
_QUESTIONS_A_STATEMENT = 200
_WAITING_QUESTIONS = 5_000
_STATEMENT_TIMEOUT_MS = 2_000
# Above the server's own time-out, for a server that hangs.
_STATEMENT_S = 3.0
# Not `connection.transaction()`: its end would wait for a hung server, past any deadline.
_BEGIN = f"begin read only; set local statement_timeout = {_STATEMENT_TIMEOUT_MS}"


class CasesUnreadable(Exception):
    """The question was not answered. The message holds nothing of it."""


class _Poisoned(Exception):
    """The statement fails because of a value in it, or takes too long; without that value it may not."""


@dataclass(frozen=True, slots=True)
class _Job:
    values: tuple[Any, ...] = field(repr=False)
    flight: Flight[asyncpg.Record]


class CasesReader:
    """Asks for all lookups over cases: what arrives together goes in one statement, and the same question goes once.

    `pool` reaches the gateway's primary with the gateway's schema in its search path; at most `statements` run at a
    time. Without `run` nothing is answered.
    """

    def __init__(self, pool: asyncpg.Pool, *, statements: int = 4) -> None:
        self._pool = pool
        # A question is shared only until it is sent: a statement that has begun does not see a case committed since.
        self._unsent: dict[tuple[str, tuple[Any, ...]], _Job] = {}
        self._batches: Batcher[str, _Job] = Batcher(
            self._serve, workers=statements, most=_QUESTIONS_A_STATEMENT, waiting=_WAITING_QUESTIONS
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._batches.run()

    async def ask(self, sql: str, values: tuple[Any, ...]) -> asyncpg.Record:
        """The row of one question of a statement by `compile_many`; raises CasesUnreadable. The caller sets a limit."""
        job = self._unsent.get((sql, values))
        if job is None:
            job = _Job(values, Flight())
            if not self._batches.put(sql, job):
                raise CasesUnreadable("too many questions are waiting")
            self._unsent[sql, values] = job
        return await job.flight.wait()

    async def _serve(self, sql: str, jobs: list[_Job]) -> None:
        for job in jobs:
            del self._unsent[sql, job.values]
        await self._answer(sql, jobs)

    async def _answer(self, sql: str, jobs: list[_Job]) -> None:
        wanted = [job for job in jobs if job.flight.wanted]
        if not wanted:
            return
        try:
            rows = await self._read(sql, [list(column) for column in zip(*(job.values for job in wanted), strict=True)])
        except _Poisoned:
            if len(wanted) > 1:
                # Somewhere in here is one bad value; the others are answered as if it had not been asked.
                half = len(wanted) // 2
                await self._answer(sql, wanted[:half])
                await self._answer(sql, wanted[half:])
            else:
                wanted[0].flight.crash(CasesUnreadable("the value cannot be asked for"))
            return
        # Not the task that asks is at fault, and the next statement may fare better: all who wait are told.
        except Exception as error:  # noqa: BLE001 - said above
            # Only what kind of error: its message may repeat a parameter.
            said = str(error) if isinstance(error, CasesUnreadable) else type(error).__name__
            _log.warning("cases_unreadable", extra={"questions": len(wanted), "error": said})
            for job in wanted:
                job.flight.crash(CasesUnreadable("the statement failed"))
            return
        for row in rows:
            wanted[row["ord"] - 1].flight.land(row)

    async def _read(self, sql: str, arguments: list[list[Any]]) -> list[asyncpg.Record]:
        failure: Exception | None = None
        rows: list[asyncpg.Record] = []
        async with asyncio.timeout(_STATEMENT_S), leased(self._pool) as connection:
            await connection.execute(_BEGIN)
            try:
                rows = await connection.fetch(sql, *arguments)
            except asyncpg.PostgresError as error:
                bad_value = (error.sqlstate or "").startswith("22") or isinstance(error, asyncpg.QueryCanceledError)
                failure = _Poisoned() if bad_value else CasesUnreadable(f"SQLSTATE {error.sqlstate}")
            except ValueError:
                failure = _Poisoned()  # the driver cannot even write the value
            # Not in a `finally`: after a time-out the connection is thrown away, and this would wait for a hung server.
            await connection.execute("rollback")
        if failure is not None:
            # Raised out here so that the driver's error, and the values in its message, are not attached to it.
            raise failure
        return rows


class UncachedLookup:
    """Answers one lookup over the table `cases`; nothing is kept."""

    def __init__(
        self,
        definition: LookupDefinition,
        reader: CasesReader,
        metrics: CacheMetrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if definition.silo != SILO:
            raise InvalidLookup(f"{definition.name} asks the silo {definition.silo}, not the gateway's cases")
        self.definition = definition
        self._sql = compile_many(definition)
        self._reader = reader
        self._metrics = metrics
        self._clock = clock

    async def answer(
        self, parameters: Mapping[str, object], *, timeout_s: float, min_as_of: AsOf | None = None
    ) -> Answer:
        """The answer as of now to normalised parameters; `cannot_tell` when the cases cannot be read in time.

        What `min_as_of` asks for is always met: every case committed before the question is seen.
        """
        del min_as_of
        started = time.perf_counter()
        answer = await self.read(parameters, timeout_s=timeout_s)
        self._metrics.answers.labels(self.definition.name, answer.source, answer.verdict).inc()
        self._metrics.seconds.labels(self.definition.name, answer.source).observe(time.perf_counter() - started)
        return answer

    async def read(self, parameters: Mapping[str, object], *, timeout_s: float) -> Answer:
        """The same, not counted: a part of another lookup's answer."""
        values = tuple(parameters.get(name) for name in self.definition.parameters)
        try:
            async with asyncio.timeout(timeout_s):
                row = await self._reader.ask(self._sql, values)
        except (CasesUnreadable, TimeoutError):
            return self._cannot_tell()
        return self._cannot_tell() if row["n"] > MOST_ROWS else self._answer(row)

    def _answer(self, row: asyncpg.Record) -> Answer:
        body = row["body"].encode()
        verdict: Verdict = "not_found" if body == b"[]" else "found"
        age_s = max(self._clock() - row["now"].timestamp(), 0.0)
        return Answer(
            verdict=verdict,
            results=body,
            as_of=AsOf(SILO, _EPOCH, 0, row["now"]),
            etag=etag_of(body, verdict),
            age_s=age_s,
            staleness_bound_ms=int(age_s * 1000) + 1,
            source="bypass",
        )

    def _cannot_tell(self) -> Answer:
        as_of = AsOf(SILO, _EPOCH, 0, dt.datetime.fromtimestamp(self._clock(), dt.UTC))
        return Answer("cannot_tell", b"[]", as_of, 'W/"none"', 0.0, None, "bypass", "cases_unreadable")


def etag_of(body: bytes, verdict: Verdict) -> str:
    """The ETag of an answer that is never kept."""
    return f'W/"{hashlib.sha256(body).hexdigest()[:16]}{verdict[0]}"'
