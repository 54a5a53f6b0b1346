"""A recording knows the oldest position and every tag of what an answer was made of, and is not used for another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cache import recorded
from cache.state import Position


def at(seq: int, epoch: str = "e1") -> Position:
    return Position(epoch, seq, f"id{seq}", "d")


class Cache:
    """Whose recordings they are."""


@pytest.fixture
def cache() -> Iterator[Cache]:
    made = Cache()
    yield made
    recorded._OPEN.set(())


def test_the_oldest_position_and_all_tags_count(cache: Cache) -> None:
    """Two snapshots are as old as the older one."""
    recorded.begin(cache, ["k"])
    recorded.note("town", at(7), 70, ["t1"])
    recorded.note("town", at(5), 50, ["t2"])
    recorded.note("town", at(9), 90, ["t1"])
    found = recorded.take(cache, "k")
    assert found is not None
    assert (found.position, found.applied_ms, found.tags, found.spoilt) == (at(5), 50, {"t1", "t2"}, False)


def test_what_was_read_before_or_for_another_key_is_no_recording(cache: Cache) -> None:
    """Only the miss of this very key opens one, and it is used once."""
    recorded.note("town", at(1), 0, ["t1"])
    recorded.begin(cache, ["k"])
    recorded.note("town", at(2), 0, ["t2"])
    assert recorded.take(cache, "other") is None
    assert recorded.take(Cache(), "k") is None
    found = recorded.take(cache, "k")
    assert found is not None
    assert found.tags == {"t2"}
    assert recorded.take(cache, "k") is None


def test_another_attempt_begins_anew(cache: Cache) -> None:
    """What a function that failed had read says nothing of the next call."""
    recorded.begin(cache, ["k"])
    recorded.note("town", at(1), 0, ["t1"])
    recorded.begin(cache, ["k"])
    found = recorded.take(cache, "k")
    assert found is not None
    assert found.position is None


@pytest.mark.parametrize(
    ("silo", "position"), [("other", at(1)), ("town", at(1, "e2")), ("town", Position("e1", 1, "id1", "other"))]
)
def test_two_silos_or_two_lives_cannot_be_guarded(cache: Cache, silo: str, position: Position) -> None:
    """Their positions cannot be compared."""
    recorded.begin(cache, ["k"])
    recorded.note("town", at(1), 0, ["t1"])
    recorded.note(silo, position, 0, ["t1"])
    found = recorded.take(cache, "k")
    assert found is not None
    assert found.spoilt


def test_too_many_tags_are_given_up(cache: Cache) -> None:
    """Each read of the entry would ask for all of them."""
    recorded.begin(cache, ["k"])
    recorded.note("town", at(1), 0, [f"t{n}" for n in range(501)])
    found = recorded.take(cache, "k")
    assert found is not None
    assert found.spoilt


def test_an_outer_answer_hangs_on_what_the_inner_one_read(cache: Cache) -> None:
    """A read adds to everything that is open, and no longer to what is closed."""
    recorded.begin(cache, ["outer"])
    recorded.begin(cache, ["inner"])
    recorded.note("town", at(1), 0, ["t1"])
    inner = recorded.take(cache, "inner")
    recorded.note("town", at(1), 0, ["t2"])
    outer = recorded.take(cache, "outer")
    assert inner is not None
    assert outer is not None
    assert (inner.tags, outer.tags) == ({"t1"}, {"t1", "t2"})


def test_what_stays_open_is_bounded(cache: Cache) -> None:
    """Functions that fail leave theirs behind; the oldest is given up and cannot be used, the newest can."""
    for n in range(100):
        recorded.begin(cache, [f"k{n}"])
    recorded.note("town", at(1), 0, ["t1"])
    assert len(recorded._OPEN.get()) == 16
    assert recorded.take(cache, "k83") is None
    assert recorded.take(cache, "k84") is not None
    assert recorded.take(cache, "k99") is not None


async def test_tasks_that_the_function_starts_read_for_it(cache: Cache) -> None:
    """And two callers at once read each for itself."""

    async def call(key: str, tags: list[str]) -> set[str]:
        recorded.begin(cache, [key])

        async def read(tag: str) -> None:
            await asyncio.sleep(0)
            recorded.note("town", at(1), 0, [tag])

        await asyncio.gather(*(read(tag) for tag in tags))
        found = recorded.take(cache, key)
        assert found is not None
        return found.tags

    first, second = await asyncio.gather(call("a", ["t1", "t2"]), call("b", ["t3"]))
    assert (first, second) == ({"t1", "t2"}, {"t3"})


async def test_an_answer_stored_by_a_task_of_its_own_is_closed_for_its_caller_too(cache: Cache) -> None:
    """`aiocache_wait_for_write=False` stores in the background, with what was read until then at least."""
    recorded.begin(cache, ["k"])
    recorded.note("town", at(3), 0, ["t1"])

    async def store() -> recorded.Recording | None:
        return recorded.take(cache, "k")

    task = asyncio.create_task(store())
    recorded.note("town", at(2), 0, ["t2"])
    found = await task
    assert found is not None
    assert (found.position, found.tags) == (at(2), {"t1", "t2"})
    recorded.note("town", at(1), 0, ["t3"])
    assert "t3" not in found.tags
    assert recorded.take(cache, "k") is None
