"""The loader asks each question once, a bounded number of them, and no longer than anyone waits."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import cache.loader
from cache.loader import Batch, Loaded, Loader, NotPrepared, Question, SiloUnavailable
from cache.metrics import CacheMetrics
from cache.server import Poisoned
from cache.state import Position

POSITION = Position("epoch", 1, "id", "definition")
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


class Silo:
    """Answers every value with itself, once its door is open; a value of 13 poisons its batch."""

    def __init__(self) -> None:
        self.door = asyncio.Event()
        self.asked: list[list[Any]] = []
        self.failure: Exception | None = None

    async def fetch(self, _sql: str, arguments: Sequence[Any], **_options: Any) -> Batch:
        values = list(arguments[0])
        self.asked.append(values)
        await self.door.wait()
        if self.failure is not None:
            raise self.failure
        if 13 in values:
            raise Poisoned("22012")
        rows = [
            {"ord": n, "body": f"[{value}]", "n": 1, "applied_at": NOW, "now": NOW} for n, value in enumerate(values, 1)
        ]
        return Batch(rows, POSITION, from_primary=False)


class Kept:
    """A lookup that notes what it is given to keep."""

    batch_sql = "select"

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def keep(self, _question: Question, loaded: Loaded) -> None:
        self.kept.append(loaded.body)


def _question(n: int) -> Question:
    return Question(f"{n:032x}", (n,), ())


@contextlib.asynccontextmanager
async def _loader(silo: Silo, workers: int = 2) -> AsyncIterator[Loader]:
    loader = Loader("town", silo.fetch, CacheMetrics(CollectorRegistry()), workers=workers)
    task = asyncio.create_task(loader.run())
    try:
        yield loader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_asked_together_is_one_query_and_each_key_is_in_it_once() -> None:
    """Every caller gets the answer to its own question, and each answer is kept once."""
    silo, lookup = Silo(), Kept()
    silo.door.set()
    async with _loader(silo) as loader:
        found = await asyncio.gather(*(loader.load(lookup, _question(n % 3)) for n in range(9)))
        await asyncio.sleep(0.01)
    assert [loaded.body for loaded in found] == [b"[0]", b"[1]", b"[2]"] * 3
    assert silo.asked == [[0, 1, 2]]
    assert lookup.kept == [b"[0]", b"[1]", b"[2]"]


async def test_a_poisonous_question_fails_alone() -> None:
    """The others of its batch are asked again, each by itself."""
    silo = Silo()
    silo.door.set()
    async with _loader(silo) as loader:
        lookup = Kept()
        found = await asyncio.gather(*(loader.load(lookup, _question(n)) for n in (12, 13, 14)), return_exceptions=True)
    assert [type(one) for one in found] == [Loaded, SiloUnavailable, Loaded]
    assert silo.asked[-4:] == [[12, 13, 14], [12], [13], [14]]


@pytest.mark.parametrize("failure", [SiloUnavailable("away"), NotPrepared(), RuntimeError("a mistake of ours")])
async def test_a_failed_query_fails_everyone_who_asked_and_nobody_later(failure: Exception) -> None:
    """The loader itself goes on, whatever it was."""
    silo = Silo()
    silo.door.set()
    silo.failure = failure
    async with _loader(silo) as loader:
        found = await asyncio.gather(*(loader.load(Kept(), _question(1)) for _ in range(3)), return_exceptions=True)
        assert found == [failure] * 3
        silo.failure = None
        assert (await loader.load(Kept(), _question(1))).body == b"[1]"


async def test_questions_nobody_waits_for_any_more_are_not_asked() -> None:
    """While the silo is slow, those who gave up are taken out of the queue."""
    silo = Silo()
    async with _loader(silo, workers=1) as loader:
        first = asyncio.create_task(loader.load(Kept(), _question(1)))
        await asyncio.sleep(0.01)
        gone = [asyncio.create_task(loader.load(Kept(), _question(n))) for n in range(2, 9)]
        await asyncio.sleep(0.01)
        for task in gone[:-1]:
            task.cancel()
        await asyncio.sleep(0.01)
        silo.door.set()
        assert (await first).body == b"[1]"
        assert (await gone[-1]).body == b"[8]"
    assert [value for values in silo.asked for value in values] == [1, 8]


async def test_more_questions_than_may_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and callers are bounded; a refusal does not wait, and the next one that fits is answered."""
    monkeypatch.setattr(cache.loader, "_WAITING_KEYS", 3)
    monkeypatch.setattr(cache.loader, "_WAITING_CALLERS", 6)
    silo = Silo()
    async with _loader(silo, workers=1) as loader:
        waiting = [asyncio.create_task(loader.load(Kept(), _question(0)))]
        await asyncio.sleep(0.01)
        waiting += [asyncio.create_task(loader.load(Kept(), _question(n))) for n in range(1, 4)]
        await asyncio.sleep(0.01)
        with pytest.raises(SiloUnavailable, match="too many"):
            await loader.load(Kept(), _question(9))
        waiting += [asyncio.create_task(loader.load(Kept(), _question(1))) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(SiloUnavailable, match="too many"):
            await loader.load(Kept(), _question(1))
        silo.door.set()
        assert len(await asyncio.gather(*waiting)) == 6
        assert (await loader.load(Kept(), _question(9))).body == b"[9]"


async def test_a_refresh_is_one_load_and_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for often, it happens once; and not at all while many questions wait."""
    silo, lookup = Silo(), Kept()
    async with _loader(silo) as loader:
        for _ in range(5):
            loader.refresh(lookup, _question(1), at_least=POSITION)
        await asyncio.sleep(0.01)
        monkeypatch.setattr(cache.loader, "_WAITING_REFRESHES", 1)
        loader.refresh(lookup, _question(2), at_least=POSITION)
        silo.door.set()
        await asyncio.sleep(0.01)
    assert silo.asked == [[1]]
    assert lookup.kept == [b"[1]"]


async def test_a_refresh_in_a_poisoned_batch_is_given_up() -> None:
    """One by one, refreshes that nobody waits for would hold up the questions of those who do."""
    silo, kept = Silo(), Kept()
    async with _loader(silo) as loader:
        loader.refresh(kept, _question(1), at_least=POSITION)
        loader.refresh(kept, _question(2), at_least=POSITION)
        asked = [asyncio.create_task(loader.load(kept, _question(n))) for n in (13, 3)]
        await asyncio.sleep(0)
        silo.door.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], SiloUnavailable)
    assert isinstance(answers[1], Loaded)
    assert not {(1,), (2,)} & {tuple(values) for values in silo.asked}
