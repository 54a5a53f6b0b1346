"""A silo as lookups see it: its servers, which of them to ask, and what may be said of their answers."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cache.answer import Verdict
from cache.loader import AnswerTooLarge, Batch, Loader, NotPrepared, SiloUnavailable
from cache.metrics import CacheMetrics
from cache.server import Poisoned, Refused, Server, ServerFailed
from cache.singleflight import Flight
from cache.standing import MOST_REJECTS, STANDING_SQL, Standing
from cache.state import Position
from cache.values import Tagger

__all__ = ["AnswerTooLarge", "NotPrepared", "Silo", "SiloUnavailable"]

_log = logging.getLogger(__name__)
_ERRORS_TO_EJECT = 5
_TOO_SLOW = "57014"
_LOOK_EVERY_S = 1.0
_LOOK_TIMEOUT_S = 1.0
_LOOKS_APART_S = 0.02
_POSITION_SQL = "select epoch, seq, id, definition from progress"
_PREPARED_SQL = "select to_regclass('progress') is not null as prepared"


class Silo:
    """Answers batches from the replicas, or from the primary where there is none or a question asks for it.

    `run` must be running; nothing is connected before it, and a silo that is down keeps nobody from starting.
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
        self.loader = Loader(name, self.fetch_batch, metrics, workers=queries)
        self.standing: Standing | None = None
        self._primary = server(primary_url)
        self._replicas = [server(url) for url in replica_urls]
        self._metrics = metrics
        self._rejects_tolerated = rejects_tolerated
        # What the server itself enforces, and a little more for one that is too ill to do so.
        self._timeout_s = statement_timeout_ms / 1000 + 0.25
        self._now = now
        self._unprepared = False
        self._look = asyncio.Event()
        self._next_look: Flight[bool] = Flight()

    async def run(self) -> None:
        """Keep the connections, answer batches and watch the servers, until cancelled."""
        servers = [self._primary, *self._replicas]
        for server in servers:
            await server.open()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.loader.run())
                tasks.create_task(self._keep_looking())
                for replica in self._replicas:
                    tasks.create_task(self._watch(replica))
        finally:
            for server in servers:
                await server.close()

    async def fetch_batch(
        self, sql: str, arguments: Sequence[Any], *, at_least: Position | None = None, primary: bool = False
    ) -> Batch:
        """One batch query. An answer older than `at_least` is given only when another replica's is no newer.

        Raises SiloUnavailable, NotPrepared, or Poisoned.
        """
        older: Batch | None = None
        slow: Poisoned | None = None
        others = 0
        for server in self._candidates(at_least, primary=primary):
            # The primary steps in for replicas that fail, not for those that are behind.
            if older is not None and (server is self._primary or others > 0):
                break
            others += older is not None
            try:
                batch = await self._ask(server, sql, arguments)
            except ServerFailed:
                continue
            except Poisoned as poisoned:
                # Asked alone it may be the server that is slow, and not the question.
                if poisoned.sqlstate != _TOO_SLOW or len(arguments[0]) > 1:
                    raise
                slow = poisoned
                continue
            if at_least is None or _has(batch.position, at_least):
                return batch
            older = batch if older is None or _has(batch.position, older.position) else older
        if older is None:
            raise slow or SiloUnavailable("no server of the silo answers")
        return older

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
        it comes from may have completed the silo, or put the answer in doubt.
        """
        known = self.standing
        if known is None or ((negative or known.load_id is None) and not known.covers(epoch, seq)):
            seen = await self._look_again(deadline)
            if not seen and known is not None and negative:
                return "cannot_tell", "unknown"
        if self.standing is None:
            return "cannot_tell", "not_loaded" if self._unprepared else "unknown"
        limit = self.max_age_s if max_age_s is None else max_age_s
        return self.standing.judge(
            negative=negative, epoch=epoch, seq=seq, tags=tags, tables=tables, max_age_s=limit, now=self._now()
        )

    # Asking

    def _candidates(self, at_least: Position | None, *, primary: bool) -> Iterator[Server]:
        if primary or not self._replicas:
            yield self._primary
            return

        def unlikely(server: Server) -> tuple[bool, bool, int]:
            behind = at_least is not None and (server.position is None or not _has(server.position, at_least))
            return server.ejected, behind, server.in_flight

        yield from sorted(self._replicas, key=unlikely)
        yield self._primary

    async def _ask(self, server: Server, sql: str, arguments: Sequence[Any]) -> Batch:
        started = time.monotonic()
        try:
            rows = await server.fetch(sql, arguments, timeout_s=self._timeout_s)
        except ServerFailed:
            self._failed(server)
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
            raise SiloUnavailable(f"the silo refuses the query ({refused.sqlstate})") from None
        self._succeeded(server)
        self._count("answered", started)
        if not rows:
            raise NotPrepared
        server.position = Position.of(rows[0])
        return Batch(rows, server.position, server is self._primary)

    async def _is_prepared(self, server: Server) -> bool:
        try:
            return bool((await server.fetch(_PREPARED_SQL, (), timeout_s=self._timeout_s))[0]["prepared"])
        except (ServerFailed, Refused, Poisoned):
            return True  # not known; then it is the lookup that is blamed

    def _count(self, outcome: str, started: float) -> None:
        self._metrics.loads.labels(self.name, outcome).inc()
        self._metrics.load_seconds.labels(self.name).observe(time.monotonic() - started)

    def _failed(self, server: Server) -> None:
        server.errors += 1
        self._metrics.server_errors.labels(self.name, server.label).inc()
        others = [replica for replica in self._replicas if replica is not server and not replica.ejected]
        if server.errors >= _ERRORS_TO_EJECT and others and not server.ejected and server is not self._primary:
            self._eject(server, ejected=True)

    def _succeeded(self, server: Server) -> None:
        server.errors = 0
        if server.ejected:
            self._eject(server, ejected=False)

    def _eject(self, server: Server, *, ejected: bool) -> None:
        server.ejected = ejected
        self._metrics.ejected.labels(self.name, server.label).set(int(ejected))
        event = "silo_server_ejected" if ejected else "silo_server_back"
        _log.warning(event, extra={"silo": self.name, "server": server.label})

    # Looking

    async def _watch(self, replica: Server) -> None:
        """Learn how far a replica is, and whether one that failed is back."""
        while True:
            try:
                rows = await replica.fetch(_POSITION_SQL, (), timeout_s=_LOOK_TIMEOUT_S)
                replica.position = Position.of(rows[0]) if rows else None
                self._succeeded(replica)
            except ServerFailed:
                self._failed(replica)
            except (Refused, Poisoned):
                replica.position = None
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look_again(self, deadline: float) -> bool:
        """Whether the primary could be looked at, after this call, before the deadline."""
        flight = self._next_look
        self._look.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await flight.wait()
        except TimeoutError:
            return False

    async def _keep_looking(self) -> None:
        while True:
            self._look.clear()
            flight, self._next_look = self._next_look, Flight()
            flight.land(await self._looked())
            await asyncio.sleep(_LOOKS_APART_S)
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _looked(self) -> bool:
        """Read completeness, age and doubts; True if it was the primary that answered.

        A replica does for want of it, but may not have the last load yet.
        """
        known = self.standing.load_id if self.standing is not None else None
        for server in (self._primary, *self._replicas):
            try:
                rows = await server.fetch(STANDING_SQL, (known, MOST_REJECTS + 1), timeout_s=_LOOK_TIMEOUT_S)
            except (ServerFailed, Poisoned):
                self._failed(server)
                continue
            except Refused as refused:
                if not refused.table_missing:
                    _log.error("silo_cannot_be_looked_at", extra={"silo": self.name, "sqlstate": refused.sqlstate})
                    return False
                rows = []
            self._succeeded(server)
            self._stand(rows[0] if rows else None)
            return server is self._primary
        return False

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


def _has(position: Position, wanted: Position) -> bool:
    """Whether a snapshot at `position` has all that one at `wanted` has, as far as can be told."""
    return position.epoch == wanted.epoch and position.seq >= wanted.seq
