"""A row that changes all the time: who reads it through every cache sees how old an answer really is.

A silo that nobody edits has an empty change log, and a cache that follows nothing looks just like one that follows
everything. The canary goes the way of every change: rows, tags and progress in one transaction, under the lock of the
applier.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping

import asyncpg

from streams.metrics import StreamMetrics
from streams.outages import DATABASE_ERRORS
from streams.silos.applier import advance, read_position
from streams.silos.errors import AnotherApplier
from streams.silos.names import CANARY, quoted
from streams.silos.values import Tagger

_log = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
# Several workers share the beat: whoever comes when it is not due leaves it.
_BEAT = f"""
update {CANARY} set beat = beat + 1, at = clock_timestamp()
where at <= clock_timestamp() - make_interval(secs => $1) returning beat
"""  # noqa: S608 - a constant


class Canary:
    """Changes the row of each silo every `every_s` seconds, unless a load is at work there or it was never loaded."""

    def __init__(
        self, pool: asyncpg.Pool, taggers: Mapping[str, Tagger], metrics: StreamMetrics, *, every_s: float
    ) -> None:
        self._pool = pool
        self._taggers = taggers
        self._metrics = metrics
        self._every_s = every_s

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until told to stop; a silo that cannot be written to is left for the next time."""
        while not stop.is_set():
            for silo, tagger in self._taggers.items():
                self._metrics.canary_beats.labels(silo, await self._tried(silo, tagger)).inc()
            try:
                async with asyncio.timeout(self._every_s / 2):
                    await stop.wait()
            except TimeoutError:
                continue

    async def _tried(self, silo: str, tagger: Tagger) -> str:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self.beat(silo, tagger)
        except (*DATABASE_ERRORS, AnotherApplier) as error:
            _log.debug("canary_failed", extra={"silo": silo, "error": type(error).__name__})
            return "failed"

    async def beat(self, silo: str, tagger: Tagger) -> str:
        """Change the row once: `beaten`, or why not (`busy`, `early`, `unloaded`)."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(f"set local search_path = {quoted('silo_' + silo)}")
            # The lock of a load: two appliers would only undo each other's work.
            if not await connection.fetchval(
                "select pg_try_advisory_xact_lock(hashtextextended($1, 0))", f"silogate load {silo}"
            ):
                return "busy"
            seen = await read_position(connection)
            if seen.definition != tagger.definition:
                # Nothing was loaded under this definition yet; the load that does so begins its epoch.
                return "unloaded"
            if await connection.fetchval(_BEAT, self._every_s) is None:
                return "early"
            source = await connection.fetchval("select source_position::text from progress")
            await advance(
                connection,
                seen,
                {tagger.table_tag(CANARY)},
                definition=seen.definition,
                source_position=json.loads(source),
            )
            return "beaten"
