"""Batches and flights: together what arrives together, once what is asked by many, nobody bound to another's end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cache.batch import Batcher
from cache.singleflight import SingleFlight


@contextlib.asynccontextmanager
async def _running(batcher: Batcher[str, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_arrives_in_one_turn_is_one_batch() -> None:
    """Callers that run before the worker does share its batch, each group its own."""
    served: list[tuple[str, list[int]]] = []

    async def serve(group: str, items: list[int]) -> None:
        served.append((group, items))

    batcher: Batcher[str, int] = Batcher(serve, workers=2, most=10, waiting=100)
    async with _running(batcher):
        await asyncio.sleep(0)

        async def put(n: int) -> None:
            batcher.put("ab"[n % 2], n)

        await asyncio.gather(*(put(n) for n in range(8)))
        await asyncio.sleep(0.01)
    assert served == [("a", [0, 2, 4, 6]), ("b", [1, 3, 5, 7])]


async def test_a_batch_is_bounded_and_the_rest_waits_its_turn() -> None:
    """A group with more than one batch takes goes to the back: it does not keep the others waiting."""
    served: list[tuple[str, list[int]]] = []

    async def serve(group: str, items: list[int]) -> None:
        served.append((group, items))

    batcher: Batcher[str, int] = Batcher(serve, workers=1, most=2, waiting=100)
    for n in range(5):
        batcher.put("a", n)
    batcher.put("b", 9)
    async with _running(batcher):
        await asyncio.sleep(0.01)
    assert served == [("a", [0, 1]), ("b", [9]), ("a", [2, 3]), ("a", [4])]


async def test_while_all_workers_are_busy_what_arrives_forms_the_next_batch() -> None:
    """No more batches are away at a time than there are workers, and what waits is bounded."""
    gate = asyncio.Event()
    away = most_away = 0
    sizes: list[int] = []

    async def serve(_group: str, items: list[int]) -> None:
        nonlocal away, most_away
        away += 1
        most_away = max(away, most_away)
        sizes.append(len(items))
        await gate.wait()
        away -= 1

    batcher: Batcher[str, int] = Batcher(serve, workers=2, most=100, waiting=10)
    async with _running(batcher):
        for n in range(2):
            assert batcher.put("a", n)
            await asyncio.sleep(0.01)
        assert [batcher.put("a", n) for n in range(11)] == [True] * 10 + [False]
        gate.set()
        await asyncio.sleep(0.01)
        assert batcher.put("a", 1)
        await asyncio.sleep(0.01)
    assert sizes == [1, 1, 10, 1]
    assert most_away == 2


async def test_waiters_share_one_result_and_leave_alone() -> None:
    """Cancelling the first, or any, ends that one only."""
    flights: SingleFlight[str, int] = SingleFlight()
    flight = flights.begin("key")
    assert flights.get("key") is flight
    waiters = [asyncio.create_task(flight.wait()) for _ in range(5)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    waiters[3].cancel()
    await asyncio.sleep(0)
    assert flight.wanted
    flights.land("key", 42)
    found = await asyncio.gather(*waiters, return_exceptions=True)
    assert [result for result in found if result == 42] == [42] * 3
    assert flights.get("key") is None
    assert await flight.wait() == 42


async def test_a_flight_without_anybody_is_not_wanted() -> None:
    """What nobody waits for any more need not be begun, unless it was begun for nobody."""
    flights: SingleFlight[str, int] = SingleFlight()
    flight = flights.begin("key")
    waiter = asyncio.create_task(flight.wait())
    await asyncio.sleep(0)
    wanted = [flight.wanted]
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert [*wanted, flight.wanted] == [True, False]
    assert flights.begin("other", unattended=True).wanted


async def test_an_error_reaches_everyone_who_waits() -> None:
    """And the next caller begins anew."""
    flights: SingleFlight[str, int] = SingleFlight()
    flight = flights.begin("key")
    waiters = [asyncio.create_task(flight.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    flights.crash("key", LookupError("no"))
    for waiter in waiters:
        with pytest.raises(LookupError):
            await waiter
    assert len(flights) == 0
