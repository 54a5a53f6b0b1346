"""A silo as lookups see it: its servers, which of them to ask, and what may be said of their answers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import Counter

from cache.answer import Verdict
from cache.limit import HedgeBudget, NegativeCap
from cache.loaded import Batch
from cache.loader import Loadable, Loader
from cache.metrics import CacheMetrics
from cache.replicas import Replicas, has
from cache.server import TOO_SLOW, Poisoned, Refused, Server, ServerFailed
from cache.singleflight import Flight
from cache.standing import MOST_REJECTS, STANDING_SQL, Standing
from cache.state import Position
from cache.unavailable import AnswerTooLarge, NobodyWaits, NotPrepared, QueryRefused, SiloUnavailable
from cache.values import Tagger

__all__ = ["AnswerTooLarge", "NotPrepared", "Silo", "SiloUnavailable"]

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_LOOK_AGAIN_S = 0.1
_LOOK_TIMEOUT_S = 1.0
_LOOKS_APART_S = 0.02
# No batch is asked a second time sooner than this: a cold key is to cost one query.
_LATE_S = 0.2
_POSITION_SQL = "select epoch, seq, id, definition from progress"
_PREPARED_SQL = "select to_regclass('progress') is not null as prepared"


class Silo:
    """Answers batches from the replicas, or from the primary where there is none or a question asks for it.

    `run` must be running; nothing is connected before it, and a silo that is down keeps nobody from starting. What a
    silo may take of this process is its own (a bulkhead): at most `queries` batches at a time, its connections, and its
    places to wait. `negatives` bounds how many answers of *there is none* are kept.
    """

    def __init__(
        self,
        name: str,
        primary_url: str,
        replica_urls: Sequence[str],
        tagger: Tagger,
        metrics: CacheMetrics,
        *,
        max_age_s: float | None,
        rejects_tolerated: bool,
        role: str = "silogate_lookup",
        statement_timeout_ms: int = 2000,
        queries: int = 8,
        negatives_per_s: float = 50.0,
        negatives_at_once: int = 2_000,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        def server(url: str) -> Server:
            return Server(
                url,
                silo=name,
                schema=f"silo_{name}",
                role=role,
                statement_timeout_ms=statement_timeout_ms,
                connections=queries + 2,
            )

        self.name = name
        self.tagger = tagger
        self.max_age_s = max_age_s
        self.loader = Loader(name, self.fetch_batch, metrics, queries=queries)
        self.negatives = NegativeCap(negatives_per_s, negatives_at_once)
        self.standing: Standing | None = None
        self._metrics = metrics
        # Found once: to look a series up by its labels takes longer than to count in it.
        self._counted: dict[str, Counter] = {}
        self._load_seconds = metrics.load_seconds.labels(name)
        self._rejects_tolerated = rejects_tolerated
        # What the server itself enforces, and a little more for one that is too ill to do so.
        self._timeout_s = statement_timeout_ms / 1000 + 0.25
        self._primary = server(primary_url)
        self._servers = Replicas(
            name, self._primary, [server(url) for url in replica_urls], metrics, silent_s=self._timeout_s / 2
        )
        self._hedges = HedgeBudget()
        self._tasks: asyncio.TaskGroup | None = None
        self._now = now
        self._unprepared = False
        self._look = asyncio.Event()
        self._next_look: Flight[None] = Flight()

    async def run(self) -> None:
        """Keep the connections, answer batches and watch the servers, until cancelled."""
        servers = [self._primary, *self._servers.replicas]
        for server in servers:
            await server.open()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self.loader.run())
                self._tasks.create_task(self._keep_looking())
                for replica in self._servers.replicas:
                    self._tasks.create_task(self._watch(replica))
        finally:
            for server in servers:
                await server.close()

    async def fetch_batch(
        self,
        lookup: Loadable,
        questions: Sequence[tuple[Any, ...]],
        *,
        at_least: Position | None = None,
        primary: bool = False,
        wanted: Callable[[], bool] = lambda: True,
        hedged: bool = False,
    ) -> Batch:
        """The answers to all questions. Ones older than `at_least` are given only when another replica's are no newer.

        `wanted` is asked before each attempt; `hedged` lets a second server be asked where the first takes unusually
        long. Raises SiloUnavailable, NobodyWaits among them, NotPrepared, or Poisoned.
        """
        older: Batch | None = None
        slow: Poisoned | None = None
        left: NobodyWaits | None = None
        others = 0
        rest = iter(self._servers.order(at_least, primary=primary))
        for server in rest:
            # The primary steps in for replicas that fail, not for those that are behind.
            if older is not None and (server is self._primary or others > 0):
                break
            if not wanted():
                left = NobodyWaits("nobody waits for it")
                break
            others += older is not None
            try:
                if hedged:
                    batch = await self._ask_hedged(server, rest, lookup, questions)
                else:
                    batch = await self._ask(server, lookup, questions)
            except ServerFailed:
                continue
            except Poisoned as poisoned:
                # Asked alone it may be the server that is slow, and not the question.
                if poisoned.sqlstate != TOO_SLOW or len(questions) > 1:
                    raise
                slow = poisoned
                continue
            if at_least is None or has(batch.oldest, at_least):
                return batch
            older = batch if older is None or has(batch.oldest, older.oldest) else older
        if older is None:
            raise left or slow or SiloUnavailable("no server of the silo answers")
        return older

    def judge_now(
        self,
        *,
        negative: bool,
        epoch: str,
        seq: int,
        tags: Sequence[str],
        tables: Iterable[str],
        max_age_s: float | None,
    ) -> tuple[Verdict, str | None] | None:
        """What `judge` says where it has nothing to wait for; None where it has."""
        known = self.standing
        limit = self.max_age_s if max_age_s is None else max_age_s
        if known is None or self._must_look(known, negative=negative, epoch=epoch, seq=seq, limit=limit):
            return None
        return known.judge(
            negative=negative, epoch=epoch, seq=seq, tags=tags, tables=tables, max_age_s=limit, now=self._now()
        )

    @staticmethod
    def _must_look(known: Standing, *, negative: bool, epoch: str, seq: int, limit: float | None) -> bool:
        is_unplaced = limit is not None and not known.knows(epoch)
        return (negative or known.load_id is None or is_unplaced) and not known.covers(epoch, seq)

    async def judge(
        self,
        *,
        negative: bool,
        epoch: str,
        seq: int,
        tags: Sequence[str],
        tables: Iterable[str],
        max_age_s: float | None,
        deadline: float,
    ) -> tuple[Verdict, str | None]:
        """The verdict on an answer at that position, and the reason if it is `cannot_tell`.

        An answer newer than what is known of the silo has to wait, until `deadline`, for another look: the load that
        it comes from may have completed the silo, or put the answer in doubt. What no look covers is never `not_found`.
        """
        known = self.standing
        limit = self.max_age_s if max_age_s is None else max_age_s
        if known is None or self._must_look(known, negative=negative, epoch=epoch, seq=seq, limit=limit):
            await self._look_again(deadline)
            known = self.standing
        if known is None:
            return "cannot_tell", "not_loaded" if self._unprepared else "unknown"
        if negative and not known.covers(epoch, seq):
            # The look failed, or showed a replica that is behind, or the answer is of a timeline that has ended.
            return "cannot_tell", "unknown"
        return known.judge(
            negative=negative, epoch=epoch, seq=seq, tags=tags, tables=tables, max_age_s=limit, now=self._now()
        )

    # Asking

    async def _ask_hedged(
        self, server: Server, rest: Iterator[Server], lookup: Loadable, questions: Sequence[tuple[Any, ...]]
    ) -> Batch:
        """The server's answer, or the next one's where the first is late and the next one is quicker.

        The slower of the two is left to its own end, so that a server that hangs is found out to.
        Dean and Barroso, The Tail at Scale, CACM 56(2), 2013: "hedged requests".
        """
        self._hedges.earn()
        if self._tasks is None or not self._servers.replicas:
            return await self._ask(server, lookup, questions)
        late_s = self._timeout_s / 2
        if server.position is not None:
            # Before its first answer it has to connect, which takes more than a query, and no second server less.
            late_s = min(late_s, max(server.p95_s, _LATE_S))
        asked = {self._tasks.create_task(self._outcome(server, lookup, questions))}
        done, asked = await asyncio.wait(asked, timeout=late_s)
        if asked and (second := self._second(rest)) is not None:
            self._metrics.hedges.labels(self.name).inc()
            asked.add(self._tasks.create_task(self._outcome(second, lookup, questions)))
        while True:
            failure: Exception | None = None
            for outcome in [task.result() for task in done]:
                if isinstance(outcome, Batch):
                    return outcome
                failure = outcome
            if failure is not None and not asked:
                raise failure
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)

    def _second(self, rest: Iterator[Server]) -> Server | None:
        return next(rest, None) if self._hedges.spend() else None

    async def _outcome(
        self, server: Server, lookup: Loadable, questions: Sequence[tuple[Any, ...]]
    ) -> Batch | Exception:
        try:
            return await self._ask(server, lookup, questions)
        # Whatever it is, it goes to the loader, which fails this batch alone, as it does where nothing is hedged. From
        # a task of this silo's group it would end the silo, and with it the process.
        except Exception as error:  # noqa: BLE001 - said above
            return error

    async def _ask(self, server: Server, lookup: Loadable, questions: Sequence[tuple[Any, ...]]) -> Batch:
        started = time.monotonic()
        try:
            batch = await self._asked(server, lookup, questions, started)
        except ServerFailed:
            self._servers.failed(server)
            self._count("failed", started)
            raise
        except Poisoned:
            self._count("poisoned", started)
            raise
        except Refused as refused:
            self._count("failed", started)
            if refused.table_missing and not await self._is_prepared(server):
                raise NotPrepared from None
            _log.error("lookup_refused_by_silo", extra={"silo": self.name, "sqlstate": refused.sqlstate})
            raise QueryRefused(f"the silo refuses the query ({refused.sqlstate})") from None
        self._count("answered", started)
        if batch is None:
            raise NotPrepared
        server.took(time.monotonic() - started)
        self._servers.answered(server, batch.newest, seconds=time.monotonic() - started)
        return batch

    async def _asked(
        self, server: Server, lookup: Loadable, questions: Sequence[tuple[Any, ...]], started: float
    ) -> Batch | None:
        """The answers; None where the silo has no position yet."""
        from_primary = server is self._primary
        if not lookup.batched:
            rows = await server.fetch_each(lookup.one_sql, questions, timeout_s=self._timeout_s)
            if len(rows) < len(questions):
                return None
            return Batch.one_by_one(rows, from_primary=from_primary, sent=started)
        columns = [list(column) for column in zip(*questions, strict=True)]
        rows = await server.fetch(lookup.batch_sql, columns, timeout_s=self._timeout_s)
        return Batch.gathered(rows[0], from_primary=from_primary, sent=started) if rows else None

    async def _is_prepared(self, server: Server) -> bool:
        try:
            return bool((await server.fetch(_PREPARED_SQL, (), timeout_s=self._timeout_s))[0]["prepared"])
        except (ServerFailed, Refused, Poisoned):
            return True  # not known; then it is the lookup that is blamed

    def _count(self, outcome: str, started: float) -> None:
        counted = self._counted.get(outcome)
        if counted is None:
            counted = self._counted[outcome] = self._metrics.loads.labels(self.name, outcome)
        counted.inc()
        self._load_seconds.observe(time.monotonic() - started)

    # Looking

    async def _watch(self, replica: Server) -> None:
        """Learn how far a replica is, and whether one that failed is back; one that fails is soon looked at again."""
        while True:
            pause_s = _LOOK_EVERY_S
            try:
                rows = await replica.fetch(_POSITION_SQL, (), timeout_s=_LOOK_TIMEOUT_S)
                self._servers.answered(replica, Position.of(rows[0]) if rows else None)
            except ServerFailed:
                self._servers.failed(replica)
                pause_s = _LOOK_EVERY_S if self._servers.is_aside(replica) else _LOOK_AGAIN_S
            except (Refused, Poisoned):
                replica.position = None
            await asyncio.sleep(pause_s)

    async def _look_again(self, deadline: float) -> None:
        """Wait for a look that began after this call, whatever came of it, or for the deadline."""
        flight = self._next_look
        self._look.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await flight.wait()

    async def _keep_looking(self) -> None:
        while True:
            self._look.clear()
            flight, self._next_look = self._next_look, Flight()
            await self._look_now()
            flight.land(None)
            await asyncio.sleep(_LOOKS_APART_S)
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _look_now(self) -> None:
        """Read completeness, age and doubts at the primary, or at a replica, which may not have the last load yet."""
        known = self.standing.load_id if self.standing is not None else None
        for server in (self._primary, *self._servers.replicas):
            try:
                rows = await server.fetch(STANDING_SQL, (known, MOST_REJECTS + 1), timeout_s=_LOOK_TIMEOUT_S)
            except (ServerFailed, Poisoned):
                self._servers.failed(server)
                continue
            except Refused as refused:
                if not refused.table_missing:
                    _log.error("silo_cannot_be_looked_at", extra={"silo": self.name, "sqlstate": refused.sqlstate})
                    return
                rows = []
            self._servers.answered(server, Position.of(rows[0]) if rows else None)
            self._stand(rows[0] if rows else None)
            return

    def _stand(self, row: Mapping[str, Any] | None) -> None:
        self._unprepared = row is None
        if row is None:
            self.standing = None
            self._metrics.complete.labels(self.name).set(0)
            return
        standing = Standing.of(row, self.standing, self.tagger, tolerant=self._rejects_tolerated)
        self.standing = standing
        self._metrics.complete.labels(self.name).set(int(standing.load_id is not None))
        self._metrics.doubtful.labels(self.name).set(len(standing.doubts))
        if standing.source_time is not None:
            self._metrics.source_time.labels(self.name).set(standing.source_time.timestamp())
