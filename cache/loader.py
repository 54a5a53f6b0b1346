"""Asks a silo: what is wanted at the same time goes in one query, and each question goes once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from cache.definition import MOST_ROWS
from cache.landed import Landed
from cache.limit import Begun, ConcurrencyLimit
from cache.loaded import Batch, Loaded
from cache.metrics import CacheMetrics
from cache.question import Question
from cache.server import TOO_SLOW, Poisoned
from cache.singleflight import Flight, SingleFlight
from cache.state import Position
from cache.unavailable import AnswerTooLarge, NobodyWaits, NotPrepared, QueryRefused, SiloUnavailable

__all__ = [
    "AnswerTooLarge",
    "Caller",
    "Loadable",
    "Loader",
    "NotPrepared",
    "QueryRefused",
    "Question",
    "SiloUnavailable",
]

_KEYS_A_BATCH = 200
# Asked one by one, on one connection, the last waits for all before it.
_KEYS_ONE_BY_ONE = 20
_SOON_S = 0.004
_WAITING_KEYS = 5_000
_WAITING_CALLERS = 20_000
# Renewing what is still good gives way long before live questions are refused.
_WAITING_REFRESHES = 500
# A spoilt batch is halved: 2 * log2(n) queries find one bad value. Where each of them ends by a time-out, fewer rounds
# count for more than fewer queries.
_PARTS, _PARTS_OF_SLOW = 2, 16


class Loadable(Protocol):
    """A lookup, as the loader sees it: one statement for many questions, or one for each where that is quicker."""

    @property
    def batch_sql(self) -> str: ...

    @property
    def one_sql(self) -> str: ...

    @property
    def batched(self) -> bool: ...

    def keep(self, question: Question, loaded: Loaded) -> None:
        """Called once for each answer, after all who wait have it."""
        ...


Fetch = Callable[..., Awaitable[Batch]]
_Key = tuple[str, bool]
_Group = tuple[Loadable, bool]


class Caller:
    """One who waits for a flight, and takes one of the loader's places for callers meanwhile."""

    __slots__ = ("_flight", "_loader", "_told")

    def __init__(self, loader: Loader, flight: Flight[Loaded], told: Callable[[Loaded | Exception], None]) -> None:
        self._loader = loader
        self._flight: Flight[Loaded] | None = flight
        self._told = told

    def __call__(self, outcome: Loaded | Exception) -> None:
        self._flight = None
        self._loader.left()
        self._told(outcome)

    def leave(self) -> None:
        """Wait no longer; the load and all others are left alone."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.leave(self)
            self._loader.left()


@dataclass(slots=True)
class _Job:
    key: _Key
    group: _Group
    question: Question
    at_least: Position | None
    flight: Flight[Loaded]


class _Waiting:
    """Jobs that are not begun, by lookup, the one that has waited longest first."""

    def __init__(self) -> None:
        self._groups: dict[_Group, dict[_Key, _Job]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, job: _Job) -> None:
        self._groups.setdefault(job.group, {})[job.key] = job
        self._count += 1

    def pull(self, group: _Group, key: _Key) -> _Job | None:
        """Take one out of the order."""
        job = self._groups.get(group, {}).pop(key, None)
        if job is not None:
            self._count -= 1
            if not self._groups[group]:
                del self._groups[group]
        return job

    def take(self, may_wait: Callable[[_Group], bool]) -> list[_Job]:
        """One batch; what is left of its lookup goes to the back. A lookup that may wait a moment does."""
        group = next((group for group in self._groups if not may_wait(group)), None)
        if group is None:
            return []
        jobs = self._groups.pop(group)
        keys = list(islice(jobs, _KEYS_A_BATCH if group[0].batched else _KEYS_ONE_BY_ONE))
        taken = [jobs.pop(key) for key in keys]
        if jobs:
            self._groups[group] = jobs
        self._count -= len(taken)
        return taken


class Loader:
    """The questions on their way to one silo, which is asked at most `queries` batches at a time, or fewer where that
    is too many for it (ConcurrencyLimit).

    What is there once the event loop has run everything that was ready goes in one batch. What arrives while the limit
    is reached forms the next one, and so does what arrives within _SOON_S of the last batch of its lookup, unless that
    is back before: a batch costs as much as ten more questions in the one after it. Questions that someone waits for go
    before refreshes, which get half of the limit at most.
    """

    def __init__(self, silo: str, fetch: Fetch, metrics: CacheMetrics, *, queries: int) -> None:
        self._silo = silo
        self._fetch = fetch
        self._metrics = metrics
        self._flights: SingleFlight[_Key, Loaded] = SingleFlight()
        self.landed = Landed()
        self._live, self._refreshes = _Waiting(), _Waiting()
        self._limit = ConcurrencyLimit(queries)
        # How many batches of a lookup are away, and when the last of them was sent.
        self._away: dict[_Group, tuple[int, float]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._callers = 0
        # Found once: to look a series up by its labels takes longer than to count in it.
        self._keys_of_batch = metrics.load_keys.labels(silo)
        metrics.waiting.labels(silo).set_function(lambda: len(self._flights))
        metrics.limit.labels(silo).set_function(lambda: self._limit.value)
        metrics.in_flight.labels(silo).set_function(lambda: self._limit.in_flight)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._take_soon()
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None

    def _take_soon(self) -> None:
        """Once the event loop has run everything that is ready."""
        if not self._is_due and self._tasks is not None:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._take_all)

    def _take_all(self) -> None:
        self._is_due = False
        if self._tasks is None:
            return
        while jobs := self._take():
            self._tasks.create_task(self._serve(jobs, self._sent(jobs[0].group)))
        if self._live and self._timer is None and self._limit.in_flight < self._limit.value:
            self._timer = asyncio.get_running_loop().call_later(_SOON_S, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self._take_all()

    def _may_wait(self, group: _Group) -> bool:
        away = self._away.get(group)
        return away is not None and time.monotonic() - away[1] < _SOON_S

    async def load(
        self, lookup: Loadable, question: Question, *, at_least: Position | None = None, primary: bool = False
    ) -> Loaded:
        """The answer, shared with whoever asks the same meanwhile; raises SiloUnavailable or NotPrepared."""
        waiter: asyncio.Future[Loaded | Exception] = asyncio.get_running_loop().create_future()

        def tell(outcome: Loaded | Exception) -> None:
            if not waiter.done():
                waiter.set_result(outcome)

        caller = self.begin(lookup, question, tell, at_least=at_least, primary=primary)
        try:
            outcome = await waiter
        finally:
            caller.leave()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def begin(
        self,
        lookup: Loadable,
        question: Question,
        told: Callable[[Loaded | Exception], None],
        *,
        at_least: Position | None = None,
        primary: bool = False,
    ) -> Caller:
        """The same for a caller that does not wait: `told`, which must not raise, gets the answer or the error later.

        Raises SiloUnavailable when too many wait.
        """
        if self._callers >= _WAITING_CALLERS:
            raise self._overloaded()
        key = (question.digest, primary)
        flight = self._flights.get(key)
        if flight is None:
            if len(self._live) >= _WAITING_KEYS:
                raise self._overloaded()
            flight = self._begin(self._live, lookup, key, question, at_least)
        elif flight.unattended:
            # Now someone waits for it.
            flight.unattended = False
            if (job := self._refreshes.pull((lookup, primary), key)) is not None:
                self._live.put(job)
        caller = Caller(self, flight, told)
        flight.join(caller)
        self._callers += 1
        return caller

    def left(self) -> None:
        """A caller waits no longer."""
        self._callers -= 1

    def refresh(self, lookup: Loadable, question: Question, *, at_least: Position) -> None:
        """Load it for the cache alone, unless that is happening already or the silo is busy."""
        key = (question.digest, False)
        if self._flights.get(key) is None and len(self._flights) < _WAITING_REFRESHES:
            self._begin(self._refreshes, lookup, key, question, at_least).unattended = True

    def _begin(
        self, waiting: _Waiting, lookup: Loadable, key: _Key, question: Question, at_least: Position | None
    ) -> Flight[Loaded]:
        flight = self._flights.begin(key)
        waiting.put(_Job(key, (lookup, key[1]), question, at_least, flight))
        self._take_soon()
        return flight

    def _overloaded(self) -> SiloUnavailable:
        self._metrics.overloaded.labels(self._silo).inc()
        return SiloUnavailable("too many questions are waiting")

    def _take(self) -> list[_Job]:
        in_flight, limit = self._limit.in_flight, self._limit.value
        if in_flight >= limit:
            return []
        jobs = self._live.take(self._may_wait)
        return jobs or (self._refreshes.take(self._may_wait) if in_flight * 2 < limit else [])

    async def _serve(self, jobs: list[_Job], begun: Begun | None) -> None:
        """Ask for all of them; where one spoils the query of all, for ever smaller parts, so that it fails alone."""
        group = jobs[0].group
        parts = deque([jobs])
        while parts:
            part = self._still_wanted(parts.popleft())
            if not part:
                continue
            poisoned = await self._load(part, begun or self._sent(group))
            begun = None
            if poisoned is not None:
                parts.extend(self._split(part, poisoned))
        if begun is not None:
            self._limit.leave()
            self._back(group)

    def _sent(self, group: _Group) -> Begun:
        """One more batch of it is away."""
        count, _ = self._away.get(group, (0, 0.0))
        self._away[group] = count + 1, time.monotonic()
        return self._limit.begin()

    def _back(self, group: _Group) -> None:
        """One less. Before its answers go out: that takes time, and the silo can do the next batch meanwhile."""
        count, sent = self._away.pop(group)
        if count > 1:
            self._away[group] = count - 1, sent
        self._take_soon()

    def _still_wanted(self, jobs: list[_Job]) -> list[_Job]:
        for job in jobs:
            if not job.flight.wanted:
                self._flights.crash(job.key, NobodyWaits("nobody waits for it"))
        return [job for job in jobs if not job.flight.landed]

    def _split(self, jobs: list[_Job], poisoned: Poisoned) -> list[list[_Job]]:
        if len(jobs) == 1:
            self._metrics.poisoned.labels(self._silo, poisoned.sqlstate).inc()
            error = SiloUnavailable(f"the silo cannot answer this question ({poisoned.sqlstate})")
            self._flights.crash(jobs[0].key, error)
            return []
        if self._live:
            # Nobody waits for a refresh, and part by part they would hold up those who are waited for.
            for job in jobs:
                if job.flight.unattended:
                    self._flights.crash(job.key, SiloUnavailable("its batch failed"))
        parts = _PARTS_OF_SLOW if poisoned.sqlstate == TOO_SLOW else _PARTS
        size = -(-len(jobs) // parts)
        return [jobs[n : n + size] for n in range(0, len(jobs), size)]

    async def _load(self, jobs: list[_Job], begun: Begun) -> Poisoned | None:
        """One batch query; what it raises goes to everyone who waits, unless it is a value that spoils it."""
        lookup, primary = jobs[0].group
        kind = (lookup, len(jobs).bit_length())
        try:
            batch = await self._fetch(
                lookup,
                [job.question.values for job in jobs],
                at_least=max((job.at_least for job in jobs if job.at_least is not None), key=_seq, default=None),
                primary=primary,
                wanted=lambda: any(job.flight.wanted for job in jobs),
                hedged=any(not job.flight.unattended for job in jobs),
            )
        except Poisoned as poisoned:
            self._limit.leave() if poisoned.sqlstate != TOO_SLOW else self._limit.end(begun, kind, failed=False)
            self._back(jobs[0].group)
            return poisoned
        except Exception as error:  # noqa: BLE001 - it goes to everyone who waits, and the next batch may fare better
            if isinstance(error, (NobodyWaits, NotPrepared, QueryRefused)):
                self._limit.leave()
            else:
                self._limit.end(begun, kind, failed=True)
            self._back(jobs[0].group)
            for job in jobs:
                self._flights.crash(job.key, error)
            return None
        self._limit.end(begun, kind, failed=False)
        self._back(jobs[0].group)
        await self._answer(lookup, jobs, batch)
        return None

    async def _answer(self, lookup: Loadable, jobs: list[_Job], batch: Batch) -> None:
        self._keys_of_batch.observe(len(jobs))
        landed = self._land(jobs, batch)
        # Those who wait have waited long enough.
        await asyncio.sleep(0)
        for question, loaded in landed:
            lookup.keep(question, loaded)

    def _land(self, jobs: list[_Job], batch: Batch) -> list[tuple[Question, Loaded]]:
        landed = []
        for job, (loaded, n) in zip(jobs, batch.answers, strict=True):
            if n > MOST_ROWS:
                self._flights.crash(job.key, AnswerTooLarge(f"the answer has more than {MOST_ROWS} rows"))
                continue
            self._flights.land(job.key, loaded)
            if not job.key[1]:
                self.landed.put(job.question.digest, loaded)
            landed.append((job.question, loaded))
        return landed


def _seq(position: Position) -> int:
    return position.seq
