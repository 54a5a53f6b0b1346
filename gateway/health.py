"""Whether this process lives, has started, and can serve.

Ready means: started, not draining, and Postgres answered a moment ago. Redis, Kafka and the rest are reported but do
not count: when a shared cache is down, every process would otherwise leave the balancer at once, though each can serve.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import asyncpg

from cache.server import leased
from gateway.telemetry import EdgeMetrics

Probe = Callable[[], Awaitable[object]]

POSTGRES = "postgres"
RECENT_S = 5.0
_POSTGRES_EVERY_S = 1.0
_OTHERS_EVERY_S = 5.0
_PROBE_S = 2.0


@dataclass(slots=True)
class Check:
    """What the last probe of a dependency saw."""

    required: bool
    up: bool = False
    answered: float | None = None
    error: str | None = None


class Health:
    """The state behind /livez, /startupz and /readyz. `run` probes; nothing else here waits for anything."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        probes: Mapping[str, Probe],
        *,
        metrics: EdgeMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._probes = {POSTGRES: self._ask_postgres, **probes}
        self._pool = pool
        self._metrics = metrics
        self.checks = {name: Check(required=name == POSTGRES) for name in self._probes}
        self.started = False
        self.draining = False

    def start(self) -> None:
        """Everything that must run before the first request runs."""
        self.started = True

    def drain(self) -> None:
        """From now on this process is not ready, so that balancers stop sending before it stops listening."""
        self.draining = True

    @property
    def reason(self) -> str | None:
        """Why this process is not ready; None when it is."""
        if not self.started:
            return "starting"
        if self.draining:
            return "draining"
        answered = self.checks[POSTGRES].answered
        if answered is None or self._clock() - answered > RECENT_S:
            return "postgres does not answer"
        return None

    def report(self) -> dict[str, object]:
        """Everything known, for people."""
        now = self._clock()
        return {
            "status": "ready" if self.reason is None else "not ready",
            "reason": self.reason,
            "checks": {
                name: {
                    "up": check.up,
                    "required": check.required,
                    "answered_s_ago": None if check.answered is None else round(now - check.answered, 1),
                    "error": check.error,
                }
                for name, check in self.checks.items()
            },
        }

    async def run(self) -> None:
        """Probes each dependency until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, probe in self._probes.items():
                tasks.create_task(self._watch(name, probe), name=f"probe {name}")

    async def probe(self, name: str) -> None:
        """Asks one dependency now."""
        check = self.checks[name]
        try:
            async with asyncio.timeout(_PROBE_S):
                await self._probes[name]()
        # Whatever a driver raises here means the same: the dependency does not answer. It is reported, not passed over.
        except Exception as error:  # noqa: BLE001
            check.up, check.error = False, type(error).__name__
        else:
            check.up, check.error, check.answered = True, None, self._clock()
        self._metrics.dependency_up.labels(name).set(check.up)

    async def _watch(self, name: str, probe: Probe) -> None:
        every = _POSTGRES_EVERY_S if probe == self._ask_postgres else _OTHERS_EVERY_S
        while True:
            await self.probe(name)
            await asyncio.sleep(every)

    async def _ask_postgres(self) -> None:
        # leased: to give a connection back that hangs takes as long as it hangs
        async with leased(self._pool) as connection:
            await connection.fetchval("select 1")
