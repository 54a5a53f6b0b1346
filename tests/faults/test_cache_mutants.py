"""The judge of the stress catches what is widely done instead of validated reads, each where it is weak."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from cache.coherence import Invalidator
from cache.group import Answer, AsOf
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.faults.cache_stress import POSTCODES, Stress, running, say
from tests.faults.cache_stress_history import History
from tests.faults.cache_stress_mutants import DoubleDeleteStore, Known, LeaseStore, NaiveStore
from tests.faults.delaying_proxy import Delay, Proxy
from tests.integration.cache_world import BY_UPRN, SILO, World, address

SEED = 20261122
WRITES = 1_200
Weakness = Callable[[Stress, Proxy, Stack], Coroutine[Any, Any, None]]

pytestmark = pytest.mark.faults


async def _slow_fills(_stress: Stress, proxy: Proxy, _stack: Stack) -> None:
    """What the replica answers is often late, so that a change comes between the snapshot and the fill."""
    proxy.replies = Delay(0.5, 0.06)


async def _very_slow_fills(_stress: Stress, proxy: Proxy, _stack: Stack) -> None:
    """Later than the second delete."""
    proxy.replies = Delay(0.5, 0.4)


async def _lag(stress: Stress, _proxy: Proxy, stack: Stack) -> None:
    """The replica is behind every now and then, so that what is read after a delete is still the old row."""
    while not stress.done():
        await stack.control("replica", "pause")
        try:
            await asyncio.sleep(0.15)
        finally:
            await stack.control("replica", "resume")
        await asyncio.sleep(0.05)


WEAK: dict[str, tuple[type[NaiveStore], Weakness]] = {
    "naive SET": (NaiveStore, _slow_fills),
    "delayed double delete": (DoubleDeleteStore, _very_slow_fills),
    "lease": (LeaseStore, _lag),
}


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[Proxy]:
    """In front of the replica, for lookups alone."""
    made = Proxy(_port(database.replica_url), random.Random(SEED))
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def worlds(database: Database, redis_url: str, proxy: Proxy) -> list[World]:
    port = _port(database.replica_url)
    url = database.replica_url.replace(f":{port}/", f":{proxy.port}/")
    return [World(database, redis_url, replica_urls=[url]) for _ in range(2)]


async def _stressed(worlds: list[World], weakness: Weakness, proxy: Proxy, stack: Stack, *, writes: int) -> Stress:
    await worlds[0].prepare()
    # Hits to judge, however slow the machine is, and fills that a change was quicker than.
    stress = Stress(worlds, SEED, writes=writes, needs={"hit": 20}, until_caught=True)
    await stress.prepare()
    async with running(worlds):
        await worlds[0].settled()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(weakness(stress, proxy, stack))
            tasks.create_task(stress.run())
    return stress


@pytest.mark.parametrize("name", WEAK)
async def test_the_judge_catches(
    name: str, worlds: list[World], proxy: Proxy, stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the place of validated reads it serves an answer that misses a change at or below its as-of."""
    kind, weakness = WEAK[name]
    known: Known = defaultdict(set)
    for world in worlds:
        world.store = kind(SILO, world.tagger.definition, world.link, world.metrics, known=known)
        world.invalidator = Invalidator(SILO, world.database.url, world.store, world.metrics, poll_s=0.005)
    stress = await _stressed(worlds, weakness, proxy, stack, writes=WRITES)
    assert stress.history.sources["hit"] > 0
    assert stress.history.violations != [], stress.summary()
    say(capfd, f"{name}: caught after {stress.written} writes, {sum(stress.history.sources.values())} answers")


@pytest.mark.parametrize("name", WEAK)
async def test_validated_reads_have_no_such_weakness(
    name: str, worlds: list[World], proxy: Proxy, stack: Stack
) -> None:
    """The same silo and the same faults: nothing to catch."""
    _, weakness = WEAK[name]
    stress = await _stressed(worlds, weakness, proxy, stack, writes=WRITES // 4)
    assert stress.history.violations == []
    assert stress.fills()["tag"] > 0, stress.summary()


_OLD, _NEW = 1, 2  # timelines; the second begins at position 2 of the first, where positions 3 and 4 are lost
_JUDGED = {
    "right at its as-of": ("first", 3, 3, None, True),
    "newer than its as-of": ("first", 1, 4, None, True),
    "older than its as-of": ("first", 4, 3, None, False),
    "never so": ("first", 1, 9, None, False),
    "of the new timeline": ("second", 3, -3, None, True),
    "of the dead timeline under the new epoch": ("second", 2, 3, None, False),
    "under an epoch that nobody began": ("third", 1, 1, None, False),
    "of the new timeline under the old epoch": ("first", 3, -3, None, False),
    "of the new timeline under the old epoch, as of what both have": ("first", 2, -3, None, False),
    "of both timelines after what one of them lost": ("first", 3, 2, None, False),
    "as old as it says": ("second", 2, 2, 45_000, True),
    "older than it says": ("second", 2, 2, 5_000, False),
    "as old as it says, on the new timeline alone": ("first", 2, 2, 40_000, True),
    "older than it says, on both timelines": ("first", 2, 2, 5_000, False),
}


@pytest.mark.parametrize("case", _JUDGED)
def test_the_judge_knows_right_from_wrong(case: str) -> None:
    """Positions, timelines and bounds: each wrong answer is a violation, and no right one is."""
    epoch, as_of, shown, bound, is_right = _JUDGED[case]
    now = time.time()
    history = History(_OLD, [{}])
    history.learn({"first": _OLD})
    for seq in (1, 2, 3, 4):
        history.current.note({1: address(1, POSTCODES[0], str(seq))})
        history.current.acked[-1] = now - 60 + seq
    assert history.fork(_NEW, 2, ["first"]) == 2
    history.learn({"second": _NEW})
    history.current.note({1: address(1, POSTCODES[0], "-3")})
    history.current.acked[-1] = now - 30
    results = json.dumps([{"uprn": "1", "address": str(shown)}]).encode()
    answer = Answer("found", results, AsOf(SILO, epoch, as_of), 'W/"1"', 0.0, bound, "hit")
    history.judge(BY_UPRN.name, 1, answer, now)
    assert (history.violations == []) is is_right, history.violations


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])
