"""Which servers of a silo to ask, in which order: those that answer, and of these the ones that are up to date."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cache.metrics import CacheMetrics
from cache.server import Server
from cache.state import Position

_log = logging.getLogger(__name__)
_ERRORS_TO_STEP_ASIDE = 3
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 30.0
_LAGS_S = 5.0
_SAMPLES, _SAMPLES_APART_S = 1_000, 0.5


@dataclass(slots=True)
class _Health:
    """Of a replica: its errors in a row, and whether others are asked before it, until when at least."""

    errors: int = 0
    aside: bool = False
    rests: int = 0
    back_at: float = 0.0
    lag_s: float = 0.0


class Replicas:
    """The servers of one silo, and what their last answers say of them. None is ever left out for good.

    A replica that has failed three times in a row steps aside: it is asked only if all others and the primary have
    failed, until it answers again; one that keeps doing so stays aside for longer each time. So does, at once, one that
    has been asked and has said nothing for `silent_s`. One that lags is asked after those that do not.
    """

    def __init__(
        self,
        silo: str,
        primary: Server,
        replicas: Sequence[Server],
        metrics: CacheMetrics,
        *,
        silent_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.primary = primary
        self.replicas = tuple(replicas)
        self._silo = silo
        self._metrics = metrics
        self._silent_s = silent_s
        self._clock = clock
        self._health = {replica: _Health() for replica in replicas}
        self._tip = _Tip(clock)

    def order(self, at_least: Position | None, *, primary: bool) -> list[Server]:
        """The servers to ask, one after the other. With `primary` only that one."""
        if primary:
            return [self.primary]

        def unlikely(server: Server) -> tuple[bool, bool, int]:
            behind = at_least is not None and (server.position is None or not has(server.position, at_least))
            return behind, self._health[server].lag_s > _LAGS_S, server.in_flight

        def is_well(server: Server) -> bool:
            return not self._health[server].aside and server.silent_s <= self._silent_s

        well = sorted(filter(is_well, self.replicas), key=unlikely)
        return [*well, self.primary, *sorted(set(self.replicas).difference(well), key=unlikely)]

    def is_aside(self, server: Server) -> bool:
        return server in self._health and self._health[server].aside

    def failed(self, server: Server) -> None:
        """It could not be asked, or did not answer in time."""
        self._metrics.server_errors.labels(self._silo, server.label).inc()
        health = self._health.get(server)
        if health is None:
            return
        health.errors += 1
        if health.errors < _ERRORS_TO_STEP_ASIDE or health.aside:
            return
        health.aside = True
        health.back_at = self._clock() + min(_LONGEST_REST_S, _FIRST_REST_S * 2.0**health.rests)
        health.rests = min(health.rests + 1, 10)
        # The last one is not ejected: the primary goes before it, but with the primary away it is asked as before.
        if any(not other.aside for other in self._health.values()):
            self._show(server, ejected=True)

    def answered(self, server: Server, position: Position | None, *, seconds: float | None = None) -> None:
        """It answered: a batch, in so many seconds, or a mere look."""
        server.position = position
        if position is not None and server is self.primary:
            self._tip.note(position)
        health = self._health.get(server)
        if health is None:
            return
        health.errors = 0
        if health.aside and self._clock() >= health.back_at:
            health.aside = False
            self._show(server, ejected=False)
        elif not health.aside and seconds is not None:
            # Only what is really asked of it shows that it is well: a look is easily answered.
            health.rests = 0
        if position is not None:
            self._measure_lag(server, health, position)

    def _measure_lag(self, server: Server, health: _Health, position: Position) -> None:
        changes, health.lag_s = self._tip.lag(position)
        self._metrics.lag_changes.labels(self._silo, server.label).set(changes)
        self._metrics.lag_seconds.labels(self._silo, server.label).set(health.lag_s)

    def _show(self, server: Server, *, ejected: bool) -> None:
        self._metrics.ejected.labels(self._silo, server.label).set(int(ejected))
        event = "silo_server_ejected" if ejected else "silo_server_back"
        _log.warning(event, extra={"silo": self._silo, "server": server.label})


class _Tip:
    """Where the primary was last seen, and since when it was there: by this process's clock, so no two are compared.

    Samples are half a second apart and bounded in number: a lag of more than these is measured as that.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._newest: tuple[Position, float] | None = None
        self._samples: deque[tuple[Position, float]] = deque(maxlen=_SAMPLES)

    def note(self, position: Position) -> None:
        if self._newest is not None and has(self._newest[0], position):
            return
        self._newest = position, self._clock()
        if not self._samples or self._clock() - self._samples[-1][1] >= _SAMPLES_APART_S:
            self._samples.append(self._newest)

    def lag(self, position: Position) -> tuple[int, float]:
        """How many changes that position lacks, and for how many seconds it has lacked one."""
        if self._newest is None or has(position, self._newest[0]):
            return 0, 0.0
        lacked = next((at for sample, at in self._samples if not has(position, sample)), self._newest[1])
        return max(1, self._newest[0].seq - position.seq), self._clock() - lacked


def has(position: Position, wanted: Position) -> bool:
    """Whether a snapshot at `position` has all that one at `wanted` has, as far as can be told."""
    return position.epoch == wanted.epoch and position.seq >= wanted.seq
