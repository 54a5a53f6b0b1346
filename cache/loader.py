"""Asks a silo: what is wanted at the same time goes in one query, and each question goes once."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg

from cache.batch import Batcher
from cache.definition import MOST_ROWS
from cache.metrics import CacheMetrics
from cache.server import Poisoned
from cache.singleflight import Flight, SingleFlight
from cache.state import Position

_KEYS_A_BATCH = 200
_WAITING_KEYS = 5_000
_WAITING_CALLERS = 20_000
# Renewing what is still good gives way long before live questions are refused.
_WAITING_REFRESHES = 500


class SiloUnavailable(Exception):
    """Nothing could answer in time. The message holds nothing of the question."""


class AnswerTooLarge(SiloUnavailable):
    """More rows than an answer may have."""


class NotPrepared(Exception):
    """The silo's tables are not there yet: it was never loaded."""


@dataclass(slots=True)
class Question:
    """One key of one lookup: values for the SQL, tags that changes touch. `digest` stands for it in Redis.

    `replace` is set when what Redis holds under the key is not to be trusted.
    """

    digest: str
    values: tuple[Any, ...] = field(repr=False)
    tags: tuple[str, ...]
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """An answer out of the silo, with the position of the snapshot that it was read in."""

    body: bytes = field(repr=False)
    position: Position
    applied_at: dt.datetime
    now: dt.datetime
    from_primary: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one batch query, one a question."""

    rows: Sequence[asyncpg.Record]
    position: Position
    from_primary: bool


class Loadable(Protocol):
    """A lookup, as the loader sees it."""

    @property
    def batch_sql(self) -> str: ...

    def keep(self, question: Question, loaded: Loaded) -> None:
        """Called once for each answer, after all who wait have it."""
        ...


Fetch = Callable[..., Awaitable[Batch]]


@dataclass(frozen=True, slots=True)
class _Job:
    key: tuple[str, bool]
    question: Question
    at_least: Position | None
    flight: Flight[Loaded]


class Loader:
    """The questions on their way to one silo; `workers` is how many queries it is asked at a time."""

    def __init__(self, silo: str, fetch: Fetch, metrics: CacheMetrics, *, workers: int) -> None:
        self._silo = silo
        self._fetch = fetch
        self._metrics = metrics
        self._waiting = metrics.waiting.labels(silo)
        self._flights: SingleFlight[tuple[str, bool], Loaded] = SingleFlight()
        self._batches: Batcher[tuple[Loadable, bool], _Job] = Batcher(
            self._serve, workers=workers, most=_KEYS_A_BATCH, waiting=_WAITING_KEYS
        )
        self._callers = 0

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._batches.run()

    async def load(
        self, lookup: Loadable, question: Question, *, at_least: Position | None = None, primary: bool = False
    ) -> Loaded:
        """The answer, shared with whoever asks the same meanwhile; raises SiloUnavailable or NotPrepared."""
        if self._callers >= _WAITING_CALLERS:
            raise self._overloaded()
        key = (question.digest, primary)
        flight = self._flights.get(key) or self._begin(lookup, key, question, at_least)
        self._callers += 1
        try:
            return await flight.wait()
        finally:
            self._callers -= 1

    def refresh(self, lookup: Loadable, question: Question, *, at_least: Position) -> None:
        """Load it for the cache alone, unless that is happening already or the silo is busy."""
        key = (question.digest, False)
        if self._flights.get(key) is None and len(self._flights) < _WAITING_REFRESHES:
            self._begin(lookup, key, question, at_least, unattended=True)

    def _begin(
        self,
        lookup: Loadable,
        key: tuple[str, bool],
        question: Question,
        at_least: Position | None,
        *,
        unattended: bool = False,
    ) -> Flight[Loaded]:
        flight = self._flights.begin(key, unattended=unattended)
        if not self._batches.put((lookup, key[1]), _Job(key, question, at_least, flight)):
            self._flights.crash(key, self._overloaded())
        self._waiting.set(len(self._flights))
        return flight

    def _overloaded(self) -> SiloUnavailable:
        self._metrics.overloaded.labels(self._silo).inc()
        return SiloUnavailable("too many questions are waiting")

    async def _serve(self, group: tuple[Loadable, bool], jobs: list[_Job]) -> None:
        lookup, primary = group
        await self._load(lookup, self._still_wanted(jobs), primary=primary)
        self._waiting.set(len(self._flights))

    def _still_wanted(self, jobs: list[_Job]) -> list[_Job]:
        for job in jobs:
            if not job.flight.wanted:
                self._flights.crash(job.key, SiloUnavailable("nobody waits for it"))
        return [job for job in jobs if not job.flight.landed]

    async def _load(self, lookup: Loadable, jobs: list[_Job], *, primary: bool) -> None:
        if not jobs:
            return
        arguments = [list(column) for column in zip(*(job.question.values for job in jobs), strict=True)]
        at_least = max((job.at_least for job in jobs if job.at_least is not None), key=_seq, default=None)
        try:
            batch = await self._fetch(lookup.batch_sql, arguments, at_least=at_least, primary=primary)
        except Poisoned as poisoned:
            await self._isolate(lookup, jobs, poisoned, primary=primary)
            return
        except Exception as error:  # noqa: BLE001 - it goes to everyone who waits, and the next batch may fare better
            for job in jobs:
                self._flights.crash(job.key, error)
            return
        self._metrics.load_keys.labels(self._silo).observe(len(jobs))
        landed = self._land(jobs, batch)
        # Sealing takes time, and those who wait have waited long enough.
        await asyncio.sleep(0)
        for question, loaded in landed:
            lookup.keep(question, loaded)

    async def _isolate(self, lookup: Loadable, jobs: list[_Job], poisoned: Poisoned, *, primary: bool) -> None:
        """One question spoilt the query of all: ask each alone, so that only that one fails."""
        if len(jobs) > 1:
            for job in jobs:
                if job.flight.unattended:
                    # Nobody waits for a refresh, and one by one they would hold up those who are waited for.
                    self._flights.crash(job.key, SiloUnavailable("its batch failed"))
                else:
                    await self._load(lookup, self._still_wanted([job]), primary=primary)
            return
        self._metrics.poisoned.labels(self._silo, poisoned.sqlstate).inc()
        self._flights.crash(jobs[0].key, SiloUnavailable(f"the silo cannot answer this question ({poisoned.sqlstate})"))

    def _land(self, jobs: list[_Job], batch: Batch) -> list[tuple[Question, Loaded]]:
        landed = []
        for row in batch.rows:
            job = jobs[row["ord"] - 1]
            if row["n"] > MOST_ROWS:
                self._flights.crash(job.key, AnswerTooLarge(f"the answer has more than {MOST_ROWS} rows"))
                continue
            loaded = Loaded(row["body"].encode(), batch.position, row["applied_at"], row["now"], batch.from_primary)
            self._flights.land(job.key, loaded)
            landed.append((job.question, loaded))
        return landed


def _seq(position: Position) -> int:
    return position.seq
