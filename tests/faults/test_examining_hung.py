"""A database that hangs in the middle of an examination keeps nobody waiting: neither `serve` nor `check`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from cache.examine.examine import Examined
from cache.examine.samples import sampled
from gateway import examining
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from gateway.examining import TooSlow, examine_lookup, lookup_connection, run_examinations
from tests.faults.frozen_postgres import frozen
from tests.integration.cache_world import BY_POSTCODE, SILO, World, address
from tests.integration.test_examining import declared, settings_of

pytestmark = pytest.mark.faults

_ENDS_WITHIN_S = 5.0
_BY_POSTCODE = declared(BY_POSTCODE, "BN15 9JB")


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    world = World(database, redis_url)
    await world.prepare()
    await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))
    yield world
    await world.stop()


@pytest.fixture
def hangs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[[ExitStack], asyncio.Event]:
    """From the first sample on the primary hangs, until the stack ends; the event tells that it does, and is asked."""

    def begin(until: ExitStack) -> asyncio.Event:
        hung = asyncio.Event()

        def sample(*arguments: Any, **options: Any) -> Awaitable[Any]:
            until.enter_context(frozen(stack, "postgres"))
            # Whoever waits for it is woken after the question below is sent.
            hung.set()
            return sampled(*arguments, **options)

        monkeypatch.setattr("cache.examine.examine.sampled", sample)
        return hung

    return begin


async def _examined(world: World) -> Examined:
    async with lookup_connection(settings_of(world.database), SILO) as connection:
        return await examine_lookup(connection, _BY_POSTCODE, BY_POSTCODE, world.tagger, functions=False)


async def _ended(task: asyncio.Task[Any]) -> float:
    """Seconds until the task ends, after which the database goes on."""
    started = time.monotonic()
    await asyncio.wait({task}, timeout=_ENDS_WITHIN_S)
    assert task.done(), "it waits for a database that hangs"
    return time.monotonic() - started


async def test_serve_stops_while_the_database_hangs(world: World, hangs: Callable[[ExitStack], asyncio.Event]) -> None:
    """One cancel ends the examinations at once: they wait neither for a ROLLBACK nor for a query to be cancelled."""
    group = world.group(BY_POSTCODE)
    world.start()
    with ExitStack() as until:
        hung = hangs(until)
        task = asyncio.create_task(
            run_examinations(
                settings_of(world.database),
                [_BY_POSTCODE],
                {BY_POSTCODE.name: group},
                {SILO: world.silo},
                world.metrics,
            )
        )
        await asyncio.wait_for(hung.wait(), 30)
        task.cancel()
        assert await _ended(task) < _ENDS_WITHIN_S
    assert task.cancelled()
    assert group.batched


async def test_an_examination_ends_at_its_deadline(
    world: World, hangs: Callable[[ExitStack], asyncio.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises TooSlow then, although the server takes no request to cancel; once it goes on all is well again."""
    monkeypatch.setattr(examining, "_EXAMINE_TIMEOUT_S", 1.0)
    with ExitStack() as until:
        hangs(until)
        task = asyncio.create_task(_examined(world))
        await _ended(task)
    assert isinstance(task.exception(), TooSlow)
    monkeypatch.undo()
    assert not (await _examined(world)).refused
