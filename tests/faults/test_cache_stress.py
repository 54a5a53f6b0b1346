"""Random changes, questions and faults on real servers, and not one answer that is older than its own as-of.

SILOGATE_TEST_SOAK sets how many writes there are in all (`make soak`: 100,000), SILOGATE_TEST_SEED another course of
events. The same seed does not give the same run, as the servers take part.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cache.coherence import Invalidator
from gateway.dev.addresses import Database
from tests.faults.cache_stress import Stress, running, say
from tests.faults.cache_stress_faults import FAILOVER, POSTGRES, REDIS, Faults, replicas_follow
from tests.faults.cache_stress_servers import StressServers, stress_servers
from tests.integration.cache_world import World

SEED = int(os.environ.get("SILOGATE_TEST_SEED", "20261122"))
SOAK = int(os.environ.get("SILOGATE_TEST_SOAK", "0"))
WRITES = SOAK or 3_000
# A phase is its share of the writes, and what happens side by side in it.
PHASES: dict[str, tuple[float, tuple[tuple[str, ...], ...]]] = {
    "redis": (0.5, (REDIS, ("replica paused", "late replies of replicas", "epoch"))),
    "postgres": (0.25, ((*POSTGRES, FAILOVER), ("late replies of Redis",))),
    "everything": (0.25, (REDIS, (*POSTGRES, FAILOVER))),
}
_PROGRESS_S = 5.0
_PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
async def stressed() -> AsyncIterator[StressServers]:
    async with stress_servers(_PROJECT / ".silogate", SEED) as servers:
        yield servers


@pytest.fixture(scope="module")
def totals() -> Counter[str]:
    """Writes, answers and violations of all phases so far."""
    return Counter()


@asynccontextmanager
async def _database(servers: StressServers) -> AsyncIterator[str]:
    name = f"stress_{secrets.token_hex(4)}"
    async with servers.connect(servers.primary, "postgres") as connection:
        await connection.execute(f'create database "{name}"')
        await replicas_follow(servers, connection)
    yield name
    async with servers.connect(servers.primary, "postgres") as connection:
        await connection.execute(f'drop database "{name}" with (force)')


@pytest.fixture
async def database(stressed: StressServers) -> AsyncIterator[str]:
    await stressed.calm()
    async with _database(stressed) as name:
        yield name


@pytest.mark.timeout(120 + WRITES // 10)
@pytest.mark.parametrize("phase", PHASES)
async def test_no_answer_is_older_than_its_as_of(
    phase: str, stressed: StressServers, database: str, totals: Counter[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever happens to the servers, an answer has every change up to its as-of, and is no older than it says."""
    share, mixes = PHASES[phase]
    url, followed = (stressed.url(proxy.port, database) for proxy in (stressed.write, stressed.follow))
    replica_urls = [stressed.url(standby.read.port, database) for standby in stressed.standbys]
    redis_url = f"redis://127.0.0.1:{stressed.redis.port}/0"
    # Redis is left alone for less than a second, or there would be little time with it between the faults.
    worlds = [World(Database(url, replica_urls[0]), redis_url, replica_urls=replica_urls, skip_s=0.2) for _ in range(2)]
    for world in worlds:
        world.invalidator = Invalidator("town", followed, world.store, world.metrics, poll_s=0.02)
    await worlds[0].prepare()
    writes = int(WRITES * share)
    needs = {"hit": writes // 4, "miss": writes // 4, "stale": int(phase == "postgres")}
    stress = Stress(worlds, SEED, writes=writes, needs=needs)
    await stress.prepare()
    faults = Faults(stress, stressed, database, SEED)
    async with running(worlds):
        for world in worlds:
            world.run(Invalidator("town", followed, world.make_store(), world.metrics, poll_s=0.005).run())
        await worlds[0].settled()
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(_tell(phase, stress, faults, capfd))
            async with asyncio.TaskGroup() as busy:
                busy.create_task(stress.run())
                for mix in mixes:
                    busy.create_task(faults.run(mix))
            telling.cancel()
        await stressed.calm()
        totals += Counter(
            writes=stress.written,
            answers=sum(stress.history.sources.values()),
            violations=len(stress.history.violations) + len(stress.too_old),
        )
        assert stress.history.violations == [], f"seed {SEED}: {stress.summary()}"
        assert stress.too_old == [], f"seed {SEED}: {stress.summary()}"
        await worlds[0].redis.connection_pool.disconnect()  # it was cut off more than once
        await worlds[0].settled()
        await stress.rests()
    say(capfd, f"{phase}: {stress.summary()}; faults (and how much of each): {faults.summary()}")
    say(
        capfd,
        f"all phases so far: {totals['writes']} writes, {totals['answers']} answers, {totals['violations']} wrong",
    )
    _happened(phase, stress, faults)


def _happened(phase: str, stress: Stress, faults: Faults) -> None:
    """It cannot have passed by doing nothing."""
    _, mixes = PHASES[phase]
    assert {name for mix in mixes for name in mix} <= {name for name, count in faults.happened.items() if count > 0}
    sources, fills = stress.history.sources, stress.fills()
    assert stress.written >= stress.writes
    assert all(sources[source] >= count for source, count in stress.needs.items()), sources
    assert stress.history.bounded > stress.writes / 4
    assert fills["stored"] > 0, fills
    assert fills["tag"] > 0, fills
    if any(FAILOVER in mix for mix in mixes):
        assert stress.history.lost > 0
        assert faults.amounts["questions to a dead replica"] > 0
        assert fills["epoch"] > 0, fills


async def _tell(phase: str, stress: Stress, faults: Faults, capfd: pytest.CaptureFixture[str]) -> None:
    """Every few seconds, where somebody waits for a long run."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(_PROGRESS_S)
        if SOAK:
            passed = time.monotonic() - started
            say(capfd, f"{phase}: {passed:.0f} s, {stress.summary()}; faults: {faults.summary()}")
