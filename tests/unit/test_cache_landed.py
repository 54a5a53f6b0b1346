"""An answer that landed a moment ago is for those alone whose look into Redis knows of nothing newer."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

import cache.landed
from cache.landed import Landed
from cache.loaded import Loaded
from cache.state import Position

NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def _loaded(seq: int, body: bytes = b'[{"uprn":"1"}]') -> Loaded:
    return Loaded(body, Position("e1", seq, "id", "definition"), NOW, NOW, from_primary=False, sent=0.0)


@pytest.mark.parametrize(
    ("epoch", "newest", "is_given"),
    [("e1", -1.0, True), ("e1", 7.0, True), ("e1", 8.0, False), ("e2", -1.0, False)],
    ids=["no change known", "the change is in it", "a newer change", "another epoch"],
)
async def test_an_answer_is_given_only_where_an_entry_made_of_it_would_count(
    epoch: str, newest: float, *, is_given: bool
) -> None:
    """The same epoch, and no tag scored above its seq."""
    landed = Landed()
    landed.put("digest", _loaded(7))
    assert (landed.get("digest", epoch, newest) is not None) is is_given
    assert landed.get("another", "e1", -1.0) is None


async def test_it_is_kept_for_a_moment() -> None:
    """Nobody gets it later, and it leaves the memory though nobody else comes."""
    landed = Landed()
    landed.put("digest", _loaded(7))
    assert landed.get("digest", "e1", -1.0) is not None
    async with asyncio.timeout(10):
        while len(landed):
            await asyncio.sleep(0.01)
    assert landed.get("digest", "e1", -1.0) is None
    landed.put("digest", _loaded(8))
    assert landed.get("digest", "e1", -1.0) is not None


async def test_the_last_one_of_a_key_is_the_one_that_is_given() -> None:
    """Loaded twice within a moment, the first is forgotten."""
    landed = Landed()
    landed.put("digest", _loaded(7))
    landed.put("digest", _loaded(9, b"[]"))
    found = landed.get("digest", "e1", 8.0)
    assert found is not None
    assert found.position.seq == 9


async def test_there_are_never_too_many_nor_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, by number and by bytes; one that is too large is not kept, nor the one before it."""
    monkeypatch.setattr(cache.landed, "_MOST", 10)
    monkeypatch.setattr(cache.landed, "_MOST_BYTES", 1_000)
    monkeypatch.setattr(cache.landed, "KEPT_S", 60.0)
    landed = Landed()
    for n in range(48):
        landed.put(str(n), _loaded(n))
        assert len(landed) <= 10
    assert [n for n in range(48) if landed.get(str(n), "e1", -1.0)] == list(range(40, 48))
    for n in range(48, 52):
        landed.put(str(n), _loaded(n, b"x" * 400))
    assert [n for n in range(52) if landed.get(str(n), "e1", -1.0)] == [50, 51]
    landed.put("51", _loaded(60, b"x" * 2_000))
    assert landed.get("51", "e1", -1.0) is None
    if landed._timer is not None:
        landed._timer.cancel()
