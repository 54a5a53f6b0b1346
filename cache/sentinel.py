"""Watches the watchers: samples the change log and looks, layer by layer, whether anyone still answers from before it.

What Meta's Polaris does for its caches: a change that was committed is a promise of each layer, so each is asked after
50 ms, 250 ms, 1 s and 10 s whether it has the change, and if not, whether it says so. Being behind is no violation as
long as the as-of and the bound that are served tell it; answering as if one were not is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from cache.group import Group
from cache.layers import Change, Found, Layer
from cache.link import RedisSkipped
from cache.loader import NotPrepared, SiloUnavailable
from cache.metrics import CacheMetrics
from cache.server import Poisoned, Refused, Server, ServerFailed
from cache.state import State
from cache.store import Store

_log = logging.getLogger(__name__)
STEPS_S = (0.05, 0.25, 1.0, 10.0)
_LOOK_EVERY_S = 0.25
_LOOK_TIMEOUT_S = 1.0
_ROWS_A_LOOK = 200
# Each is asked for again at every step and layer, so a few say as much as many.
_SAMPLES_A_LOOK = 1
_CANARY_EVERY_S = 1.0
_MOST_WATCHED = 200

_NEW_ROWS_SQL = """
select p.epoch, p.seq, (
    select coalesce(json_agg(json_build_array(c.seq, c.tags) order by c.seq), '[]')
    from (select seq, tags from change_log where seq > $1::int8 order by seq desc limit $2::int8) c
)::text as rows
from progress p
"""

# Nothing can be compared; whoever asks for lookups meanwhile learns that from their answers.
_AWAY = (ServerFailed, Refused, Poisoned, RedisSkipped, SiloUnavailable, NotPrepared)


@dataclass(slots=True)
class _Watch:
    """A change and how far its checks are."""

    change: Change
    layer: Layer
    step: int = 0
    converged: bool = False


class Sentinel:
    """Follows one silo. `run` until cancelled; what it finds goes to metrics and, for a violation, to the log.

    A suspicion is counted once the next look confirms it: a layer is read piece by piece while it moves.
    """

    def __init__(
        self,
        silo: str,
        primary: Server,
        store: Store,
        layers: Sequence[Layer],
        metrics: CacheMetrics,
        *,
        canary: Group | None = None,
        steps_s: Sequence[float] = STEPS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._silo = silo
        self._primary = primary
        self._store = store
        self._layers = layers
        self._metrics = metrics
        self._canary = canary
        self._steps_s = steps_s
        self._clock = clock
        self._watched: list[_Watch] = []
        self._seq: int | None = None
        self._epoch = ""
        # Which rows are looked at is no secret; that all of them may be is enough.
        self._chance = random.Random()  # noqa: S311 - said above

    @property
    def position(self) -> int | None:
        """The seq up to which changes were seen; None before the first look."""
        return self._seq

    async def run(self) -> None:
        """Sample and check until cancelled; while primary or Redis is away there is nothing to compare."""
        await self._primary.open()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sample())
                tasks.create_task(self._check())
                if self._canary is not None:
                    tasks.create_task(self._read_canary(self._canary))
        finally:
            await self._primary.close()

    # Sampling

    async def _sample(self) -> None:
        while True:
            try:
                await self.look()
            except _AWAY:
                self._metrics.sentinel_blind.labels(self._silo).inc()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """See what is new at the primary, and take some of it to watch."""
        since = -1 if self._seq is None else self._seq
        rows = await self._primary.fetch(_NEW_ROWS_SQL, (since, _ROWS_A_LOOK), timeout_s=_LOOK_TIMEOUT_S)
        if not rows:
            return
        epoch, seq = rows[0]["epoch"], rows[0]["seq"]
        # Redis's clock after the rows were seen: a state that is younger than that must have them.
        raw, seen_ms = await self._store.look()
        state = State.parse(raw)
        if state is not None and state.epoch == epoch:
            self._metrics.sentinel_lag.labels(self._silo).set(max(0, seq - state.seq))
        first = self._seq is None or epoch != self._epoch
        self._seq, self._epoch = seq, epoch
        if first:
            return  # what was there before is not new
        new = [(number, tags) for number, tags in orjson.loads(rows[0]["rows"]) if tags]
        for number, tags in self._chance.sample(new, min(_SAMPLES_A_LOOK, len(new))):
            some = tuple(self._chance.sample(tags, min(5, len(tags))))
            change = Change(epoch, number, some, seen_ms, self._clock())
            if len(self._watched) + len(self._layers) <= _MOST_WATCHED:
                self._watched += [_Watch(change, layer) for layer in self._layers]

    # Checking

    async def _check(self) -> None:
        while True:
            for watch in [watch for watch in self._watched if self._is_due(watch)]:
                await self._checked(watch)
            self._watched = [watch for watch in self._watched if watch.step < len(self._steps_s)]
            await asyncio.sleep(min(self._steps_s) / 2)

    def _is_due(self, watch: _Watch) -> bool:
        return self._clock() >= watch.change.seen_at + self._steps_s[watch.step]

    async def _checked(self, watch: _Watch) -> None:
        found: Found
        try:
            found = await watch.layer.has(watch.change)
            if found == "violation":
                # Read piece by piece while it moves, a layer may seem wrong for a moment: look once more.
                found = await watch.layer.has(watch.change)
        except _AWAY:
            found = "unknown"
        within = f"{self._steps_s[watch.step] * 1000:g}ms"
        self._metrics.sentinel_checks.labels(self._silo, watch.layer.name, within, found).inc()
        if found == "current" and not watch.converged:
            watch.converged = True
            self._metrics.sentinel_convergence.labels(self._silo, watch.layer.name).observe(
                self._clock() - watch.change.seen_at
            )
        if found == "violation":
            self._metrics.sentinel_violations.labels(self._silo, watch.layer.name, within).inc()
            _log.error(
                "consistency_violation",
                extra={"silo": self._silo, "layer": watch.layer.name, "within": within, "seq": watch.change.seq},
            )
        watch.step += 1

    # The canary

    async def _read_canary(self, canary: Group) -> None:
        """Read the row that always changes, as anybody reads, so that a silent change log is not taken for peace."""
        while True:
            try:
                answer = await canary.answer({"row": 1}, timeout_s=_LOOK_TIMEOUT_S)
                rows = orjson.loads(answer.results)
                if rows and rows[0]["at"] is not None:
                    self._metrics.canary_age.labels(self._silo).set(max(0.0, time.time() - rows[0]["at"]))
            except _AWAY:
                self._metrics.sentinel_blind.labels(self._silo).inc()
            await asyncio.sleep(_CANARY_EVERY_S)
