"""The loader asks each question once, a bounded number of them, and no longer than anyone waits."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import cache.loader
from cache.loaded import Batch, Loaded
from cache.loader import Loader, NotPrepared, QueryRefused, Question, SiloUnavailable
from cache.metrics import CacheMetrics
from cache.server import Poisoned
from cache.state import Position
from cache.unavailable import NobodyWaits

POSITION = Position("epoch", 1, "id", "definition")
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


class Silo:
    """Answers every value with itself, once its door is open; a value of 13 poisons its batch."""

    def __init__(self) -> None:
        self.door = asyncio.Event()
        self.asked: list[list[Any]] = []
        self.failure: Exception | None = None
        self.sqlstate = "22012"
        self.positions: list[Position] = []
        self.wanted: Callable[[], bool] = lambda: False

    async def fetch(self, _lookup: object, questions: Sequence[tuple[Any, ...]], **options: Any) -> Batch:
        values = [value for (value,) in questions]
        self.wanted = options["wanted"]
        self.asked.append(values)
        await self.door.wait()
        if self.failure is not None:
            raise self.failure
        if 13 in values:
            raise Poisoned(self.sqlstate)
        positions = self.positions or [POSITION] * len(values)
        return Batch(
            [
                (Loaded(b"[%d]" % value, position, NOW, NOW, from_primary=False, sent=0.0), 1)
                for value, position in zip(values, positions, strict=True)
            ]
        )


class Kept:
    """A lookup that notes what it is given to keep."""

    batch_sql = one_sql = "select"

    def __init__(self, *, batched: bool = True) -> None:
        self.batched = batched
        self.kept: list[bytes] = []

    def keep(self, _question: Question, loaded: Loaded) -> None:
        self.kept.append(loaded.body)


def _question(n: int) -> Question:
    return Question(f"{n:032x}", (n,), ())


@contextlib.asynccontextmanager
async def _loader(silo: Silo, queries: int = 2) -> AsyncIterator[Loader]:
    loader = Loader("town", silo.fetch, CacheMetrics(CollectorRegistry()), queries=queries)
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
    """The others of its batch are asked again, in ever smaller parts."""
    silo = Silo()
    silo.door.set()
    async with _loader(silo) as loader:
        lookup = Kept()
        found = await asyncio.gather(*(loader.load(lookup, _question(n)) for n in (12, 13, 14)), return_exceptions=True)
    assert [type(one) for one in found] == [Loaded, SiloUnavailable, Loaded]
    assert silo.asked == [[12, 13, 14], [12, 13], [14], [12], [13]]


@pytest.mark.parametrize(
    ("batched", "sqlstate", "most"),
    [(True, "22012", 1 + 2 * 8), (False, "22012", 10 + 2 * 5), (True, "57014", 1 + 16 + 13), (False, "57014", 10 + 20)],
    ids=["bad value in a batch", "bad value one by one", "slow value in a batch", "slow value one by one"],
)
async def test_a_poisonous_question_among_two_hundred_costs_few_queries(
    batched: bool, sqlstate: str, most: int
) -> None:
    """All others are answered, after about twice the logarithm of their number; what is slow is found in three rounds.

    Round means: no answer waits for more than two other time-outs.
    """
    silo, lookup = Silo(), Kept(batched=batched)
    silo.sqlstate = sqlstate
    silo.door.set()
    async with _loader(silo) as loader:
        found = await asyncio.gather(*(loader.load(lookup, _question(n)) for n in range(200)), return_exceptions=True)
    assert [n for n, one in enumerate(found) if not isinstance(one, Loaded)] == [13]
    assert len(silo.asked) <= most
    if sqlstate == "57014":
        assert sum(13 in values for values in silo.asked) <= 3


async def test_one_by_one_a_batch_is_smaller_and_each_answer_has_its_own_position() -> None:
    """Questions of a lookup that is not batched go in small batches; each is kept under the position of its row."""
    silo, lookup = Silo(), Kept(batched=False)
    silo.positions = [replace(POSITION, seq=n) for n in range(1, 21)]
    silo.door.set()
    async with _loader(silo) as loader:
        found = await asyncio.gather(*(loader.load(lookup, _question(n)) for n in range(20, 60)))
    assert [len(values) for values in silo.asked] == [20, 20]
    assert [loaded.position.seq for loaded in found] == [*range(1, 21)] * 2


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
    async with _loader(silo, queries=1) as loader:
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
    async with _loader(silo, queries=1) as loader:
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


async def test_refreshes_give_way_to_questions() -> None:
    """They wait until those who wait themselves are served, and get half of what the silo is asked at a time."""
    silo, lookup = Silo(), Kept()
    async with _loader(silo, queries=4) as loader:
        for batch in range(3):
            loader.refresh(lookup, _question(batch), at_least=POSITION)
            await asyncio.sleep(0.01)
        asked = [asyncio.create_task(loader.load(lookup, _question(n))) for n in range(100, 500)]
        await asyncio.sleep(0.01)
        assert silo.asked == [[0], [*range(100, 300)]]  # the limit begins at two: one refresh, one question
        silo.door.set()
        await asyncio.gather(*asked)
        await asyncio.sleep(0.01)
    assert silo.asked[2:] == [[*range(300, 500)], [1, 2]]


async def test_a_question_that_is_waiting_to_be_refreshed_is_moved_up() -> None:
    """Once someone waits for it, it goes before the refreshes, and still only once."""
    silo, lookup = Silo(), Kept()
    async with _loader(silo, queries=1) as loader:
        first = asyncio.create_task(loader.load(lookup, _question(0)))
        await asyncio.sleep(0.01)
        for n in (1, 2, 3):
            loader.refresh(lookup, _question(n), at_least=POSITION)
        moved = asyncio.create_task(loader.load(lookup, _question(2)))
        await asyncio.sleep(0.01)
        silo.door.set()
        assert [(await task).body for task in (first, moved)] == [b"[0]", b"[2]"]
        await asyncio.sleep(0.01)
    assert silo.asked == [[0], [2], [1, 3]]


async def test_refreshes_in_a_poisoned_batch_are_given_up_when_someone_waits() -> None:
    """Part by part, refreshes that nobody waits for would hold up the questions of those who do."""
    silo, kept = Silo(), Kept()
    async with _loader(silo, queries=1) as loader:
        for n in (1, 13, 2):
            loader.refresh(kept, _question(n), at_least=POSITION)
        await asyncio.sleep(0.01)
        asked = asyncio.create_task(loader.load(kept, _question(3)))
        await asyncio.sleep(0.01)
        silo.door.set()
        await asked
    assert silo.asked == [[1, 13, 2], [3]]


async def test_a_silo_that_fails_is_asked_less_and_then_more_again() -> None:
    """The limit on batches falls to one while it fails, and is shown."""
    silo, registry = Silo(), CollectorRegistry()
    loader = Loader("town", silo.fetch, CacheMetrics(registry), queries=8)

    async def asked(questions: range) -> float | None:
        for n in questions:
            await asyncio.gather(loader.load(Kept(), _question(n)), return_exceptions=True)
        await asyncio.sleep(0.01)
        assert registry.get_sample_value("silogate_silo_in_flight", {"silo": "town"}) == 0
        assert registry.get_sample_value("silogate_silo_waiting_loads", {"silo": "town"}) == 0
        return registry.get_sample_value("silogate_silo_limit", {"silo": "town"})

    task = asyncio.create_task(loader.run())
    silo.door.set()
    assert registry.get_sample_value("silogate_silo_limit", {"silo": "town"}) == 4
    silo.failure = QueryRefused("a mistake in one lookup")
    assert await asked(range(20, 30)) == 4
    silo.failure = NobodyWaits("all have gone")
    assert await asked(range(200, 210)) == 4
    silo.failure = SiloUnavailable("away")
    assert await asked(range(30, 40)) == 1
    silo.failure = None
    assert (await asked(range(40, 140)) or 0) > 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_when_all_have_gone_no_other_server_is_asked() -> None:
    """Whoever asks the servers in turn can tell that nobody waits any more."""
    silo = Silo()
    async with _loader(silo) as loader:
        caller = asyncio.create_task(loader.load(Kept(), _question(1)))
        await asyncio.sleep(0.01)
        assert silo.wanted()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        assert not silo.wanted()
