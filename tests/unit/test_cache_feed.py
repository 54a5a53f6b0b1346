"""What a process keeps of a silo goes with the first change that touches it, and nothing is served on old news."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cache.entry import Entry
from cache.feed import L1, _Row
from cache.state import State
from tests.unit.feed_model import FakeSilo, RandomRun, entry


@pytest.fixture
def silo() -> FakeSilo:
    made = FakeSilo()
    made.begin()
    return made


def state_of(silo: FakeSilo) -> State:
    assert silo.redis.state is not None
    return silo.redis.state


def keep(silo: FakeSilo, digest: str = "a", *tags: str, **fields: Any) -> None:
    """An entry read from the silo a moment ago, and validated as Redis stands now."""
    silo.l1.keep(digest, tags or ("t1",), replace(entry(silo.seq), **fields), state_of(silo))


def test_what_is_kept_is_served_as_of_the_feed(silo: FakeSilo) -> None:
    """The as-of moves with the feed, also by a change that does not touch the entry."""
    keep(silo)
    silo.change("t2")
    assert silo.take() is None
    held = silo.l1.get("a")
    assert held is not None
    assert (held.entry.seq, held.state.seq, held.state.epoch) == (0, 1, "e1")
    assert silo.l1.get("a") is held
    assert silo.l1.get("b") is None


def test_a_change_drops_what_it_touches(silo: FakeSilo) -> None:
    """Only entries with the tag go, and only those read before the change."""
    keep(silo, "a", "t1")
    keep(silo, "b", "t2")
    keep(silo, "ab", "t1", "t2")
    silo.change("t1")
    newer = replace(state_of(silo))
    silo.l1.keep("new", ("t1",), entry(1), newer)
    silo.take()
    assert [silo.l1.get(digest) is not None for digest in ("a", "b", "ab", "new")] == [False, True, False, True]
    assert silo.dropped("tag") == 2


def test_a_reply_older_than_the_feed_is_refused(silo: FakeSilo) -> None:
    """The row that touched it has been and gone, so nothing would ever drop it."""
    before = state_of(silo)
    silo.change("t1")
    silo.take()
    silo.l1.keep("a", ("t1",), entry(0), before)
    assert silo.l1.get("a") is None


def test_a_reply_ahead_of_the_feed_is_kept_and_served_as_of_the_feed(silo: FakeSilo) -> None:
    """It says no more than what the feed has brought, and stays when the rows come that it already knows of."""
    silo.change("t1")
    silo.l1.keep("a", ("t1",), entry(1), state_of(silo))
    held = silo.l1.get("a")
    assert held is not None
    assert held.state.seq == 0
    silo.take()
    held = silo.l1.get("a")
    assert held is not None
    assert held.state.seq == 1


def test_a_reply_of_another_epoch_is_refused(silo: FakeSilo) -> None:
    """Positions of two epochs cannot be compared."""
    before = state_of(silo)
    silo.begin_epoch()
    silo.l1.keep("a", ("t1",), entry(5), state_of(silo))
    assert silo.l1.get("a") is None
    assert silo.take() == "epoch"
    silo.l1.keep("a", ("t1",), entry(5), before)
    assert silo.l1.get("a") is None


def test_a_new_epoch_empties_it(silo: FakeSilo) -> None:
    """What Redis knew before is gone, and with it what could have dropped the entries."""
    keep(silo)
    silo.begin_epoch()
    assert silo.take() == "epoch"
    assert silo.l1.get("a") is None
    assert silo.dropped("epoch") == 1


def test_a_redis_without_a_state_empties_it(silo: FakeSilo) -> None:
    """Flushed and not yet begun anew: there is nothing to follow, and nothing may be kept."""
    keep(silo)
    before = state_of(silo)
    silo.redis.state = None
    assert silo.take(silo.reply([])) == "epoch"
    silo.l1.keep("a", ("t1",), entry(0), before)
    assert silo.l1.get("a") is None


def test_a_row_that_does_not_join_on_empties_it(silo: FakeSilo) -> None:
    """XREAD skips what was trimmed without a word."""
    keep(silo, "b", "t2")
    silo.change("t2")
    silo.change("t1")
    del silo.redis.feed[:-1]
    assert silo.take() == "gap"
    assert silo.l1.get("b") is None
    assert silo.dropped("gap") == 1


def test_rows_that_never_come_empty_it_one_round_later(silo: FakeSilo) -> None:
    """A state ahead of the rows is right once, as they may be on their way, and then no more."""
    keep(silo)
    silo.change("t1")
    assert silo.take(silo.reply([])) is None
    assert silo.take(silo.reply([])) == "gap"
    assert silo.l1.get("a") is None


def test_a_full_round_may_leave_rows_for_the_next(silo: FakeSilo) -> None:
    """More rows than one round takes are not a gap."""
    keep(silo, "b", "t2")
    for _ in range(250):
        silo.change("t1")
    assert silo.take(silo.reply([])) is None
    for _ in range(3):
        assert silo.take(silo.reply(silo.redis.after(silo.l1._last_id)[:100])) is None
    held = silo.l1.get("b")
    assert held is not None
    assert held.state.seq == 250


@pytest.mark.parametrize("spoilt", [{}, {b"seq": b"x"}, {b"epoch": b"\xff"}, {b"previous": b"none"}])
def test_a_row_that_cannot_be_read_empties_it(silo: FakeSilo, spoilt: dict[bytes, bytes]) -> None:
    """Nobody knows what it would have dropped."""
    keep(silo)
    silo.change("t2")
    row_id, fields = silo.redis.feed[-1]
    silo.redis.feed[-1] = (row_id, fields | spoilt if spoilt else {})
    assert silo.take() == "gap"
    assert silo.l1.get("a") is None


def test_a_redis_that_is_behind_empties_it(silo: FakeSilo) -> None:
    """A replica that had not all of it took over."""
    silo.change("t2")
    silo.take()
    keep(silo)
    state = state_of(silo)
    silo.redis.state = replace(state, position=replace(state.position, seq=0, id="id0"))
    assert silo.take(silo.reply([])) == "failover"
    assert silo.l1.get("a") is None


def test_the_same_position_under_another_id_empties_it(silo: FakeSilo) -> None:
    """It is a position of another life."""
    keep(silo)
    state = state_of(silo)
    silo.redis.state = replace(state, position=replace(state.position, id="other"))
    assert silo.take() == "failover"


def test_nothing_is_served_on_old_news(silo: FakeSilo) -> None:
    """A process that was frozen finds out by its clock, before it has heard anything."""
    keep(silo)
    silo.now += 0.49
    assert silo.l1.get("a") is not None
    silo.now += 9.5
    assert silo.l1.get("a") is None
    keep(silo, "b")
    assert silo.take() is None
    assert silo.dropped("silence") == 1
    assert silo.l1.get("b") is None


def test_news_count_from_when_they_were_asked_for(silo: FakeSilo) -> None:
    """A reply that lay unread while the process was frozen is as old as its question."""
    keep(silo)
    reply = silo.reply()
    silo.now += 10
    assert silo.take(reply) is None
    keep(silo)
    assert silo.l1.get("a") is None
    assert silo.take() is None
    keep(silo)
    assert silo.l1.get("a") is not None


def test_the_time_is_that_of_the_very_position(silo: FakeSilo) -> None:
    """A state further on says when *it* was newest, not when the rows that have come were."""
    keep(silo)
    began = state_of(silo).time_ms
    silo.change("t2")
    silo.beat()
    silo.take(silo.reply([]))
    held = silo.l1.get("a")
    assert held is not None
    assert (held.state.seq, held.state.time_ms) == (0, began)
    silo.take()
    held = silo.l1.get("a")
    assert held is not None
    assert (held.state.seq, held.state.time_ms) == (1, state_of(silo).time_ms)


@pytest.mark.parametrize("ends", ["soft_ms", "fresh_ms"])
def test_an_entry_goes_when_it_is_due(silo: FakeSilo, ends: str) -> None:
    """By Redis's clock, and at the soft TTL: from there on Redis is asked for the one that renews it."""
    keep(silo, "a", "t1", **{ends: int(silo.now * 1000) + 200})
    assert silo.l1.get("a") is not None
    silo.now += 0.2
    silo.take()
    assert silo.l1.get("a") is None
    keep(silo, "a", "t1", **{ends: int(silo.now * 1000)})
    assert silo.l1.get("a") is None
    assert silo.dropped("expired") == 1


def test_an_older_entry_does_not_replace_a_newer_one(silo: FakeSilo) -> None:
    """Both are valid, and the newer one stays so for longer."""
    silo.l1.keep("a", ("t1",), entry(3), state_of(silo))
    silo.l1.keep("a", ("t1",), entry(0), state_of(silo))
    held = silo.l1.get("a")
    assert held is not None
    assert held.entry.seq == 3


def test_it_is_bounded_by_entries() -> None:
    """What was not asked for longest goes, and its tags with it."""
    silo = FakeSilo(most_entries=10)
    silo.begin()
    for n in range(10):
        keep(silo, f"d{n}", f"t{n}", "all")
    assert silo.l1.get("d0") is not None
    keep(silo, "d10", "t10", "all")
    assert silo.l1.get("d1") is None
    assert silo.l1.get("d0") is not None
    assert silo.dropped("evicted") == 1
    shelf = silo.l1._shelf
    assert set(shelf.tagged) == {f"t{n}" for n in range(11) if n != 1} | {"all"}
    assert shelf.tagged["all"] == set(shelf.slots)


def test_it_is_bounded_by_bytes() -> None:
    """Bodies and tags count; one answer too large to be worth it is not taken."""
    silo = FakeSilo(most_entries=10_000, most_bytes=100_000)
    silo.begin()
    at = state_of(silo)
    for n in range(200):
        silo.l1.keep(f"d{n}", (f"t{n}",), entry(0, body=b"x" * 800), at)
    shelf = silo.l1._shelf
    assert 40_000 < shelf.bytes <= 100_000
    assert shelf.bytes == sum(slot.size for slot in shelf.slots.values())
    silo.l1.keep("large", ("t1",), entry(0, body=b"x" * 50_000), at)
    assert silo.l1.get("large") is None
    silo.l1.keep("many", tuple(f"tile{n}" for n in range(64)), entry(0), at)
    assert silo.l1.get("many") is None
    silo.l1._lose("gap")
    assert (shelf.bytes, len(shelf.slots), len(shelf.tagged)) == (0, 0, 0)


@pytest.mark.parametrize("block", range(10))
def test_whatever_happens_in_whatever_order_no_change_is_missed(block: int) -> None:
    """Commits, rows and replies in flight, trims, failovers, flushes and pauses, against a plain model."""
    for seed in range(block * 100, block * 100 + 100):
        assert RandomRun(seed).violation() is None, seed


class NaiveKeep(L1):
    """Keeps what comes, as client-side caches do that know no reply in flight."""

    def keep(self, digest: str, tags: tuple[str, ...], entry: Entry, state: State) -> None:
        if self._state is not None:
            super().keep(digest, tags, entry, replace(state, position=self._state.position))


class KeepsAnyPosition(L1):
    """Looks at the epoch only."""

    def keep(self, digest: str, tags: tuple[str, ...], entry: Entry, state: State) -> None:
        if self._state is not None and state.epoch == self._state.epoch:
            super().keep(digest, tags, entry, replace(state, position=self._state.position))


class IgnoresPrevious(L1):
    """Takes each row as the next one."""

    def _move(self, row: _Row) -> None:
        if self._state is not None and row.previous is not None:
            row = replace(row, previous=self._state.seq)
        super()._move(row)


class TakesTheStatesWord(L1):
    """Serves as of the state read with the rows, whether they have come or not."""

    def _set_clock(self, reply: object) -> None:
        super()._set_clock(reply)  # type: ignore[arg-type]
        self._state = getattr(reply, "state", None)


class StaysOverALoss(L1):
    """Keeps its entries when it has to begin anew."""

    def _lose(self, reason: str) -> None:
        self._state = None


@pytest.mark.parametrize("mutant", [NaiveKeep, KeepsAnyPosition, IgnoresPrevious, TakesTheStatesWord, StaysOverALoss])
def test_each_rule_left_out_is_seen(mutant: type[L1]) -> None:
    """The same runs find a change missed when one rule is missing."""
    assert any(RandomRun(seed, mutant).violation() for seed in range(300))
