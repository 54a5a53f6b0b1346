"""The limit finds what a silo can do at a time, gives way when it cannot, and comes back; the caps are kept."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from cache.limit import Begun, ConcurrencyLimit, HedgeBudget, NegativeCap

KIND = "addresses-by-postcode", 3


class Simulated:
    """A server that does `lanes` batches at a time, each in `service_s`, and the rest in turn; time is a number."""

    def __init__(self, most: int, *, lanes: int, service_s: float = 0.02, noise: float = 0.0) -> None:
        self.now = 0.0
        self.lanes = lanes
        self.service_s = service_s
        self.hangs = False
        self.limit = ConcurrencyLimit(most, clock=lambda: self.now)
        self.most_in_flight = 0
        self._noise = noise
        self._random = random.Random(4)
        self._ends: list[tuple[float, int, Begun, bool]] = []
        self._free: list[float] = []
        self._number = itertools.count()

    def run(self, seconds: float, *, at_once: int = 100, timeout_s: float = 2.25) -> list[int]:
        """Batches wait all the time, `at_once` at most: the limit after each that ends."""
        until, limits = self.now + seconds, []
        while self.now < until:
            while self.limit.in_flight < min(self.limit.value, at_once):
                self._begin(timeout_s)
            self.most_in_flight = max(self.most_in_flight, self.limit.in_flight)
            self.now, _, begun, failed = heapq.heappop(self._ends)
            self.limit.end(begun, KIND, failed=failed)
            limits.append(self.limit.value)
        return limits

    def _begin(self, timeout_s: float) -> None:
        begun = self.limit.begin()
        if self.hangs:
            end, failed = self.now + timeout_s, True
        else:
            while len(self._free) > self.lanes:
                heapq.heappop(self._free)
            lane = heapq.heappop(self._free) if len(self._free) == self.lanes else self.now
            service_s = self.service_s * (1 + self._noise * self._random.random())
            end, failed = max(lane, self.now) + service_s, False
            heapq.heappush(self._free, end)
        heapq.heappush(self._ends, (end, next(self._number), begun, failed))


@pytest.mark.parametrize("lanes", [1, 2, 4], ids=lambda lanes: f"{lanes} lanes")
def test_the_limit_settles_where_the_server_is_busy_and_little_waits(lanes: int) -> None:
    """Every lane has work, and nothing waits for more than three times what it takes."""
    server = Simulated(32, lanes=lanes, noise=0.3)
    server.run(1, at_once=1)
    settled = server.run(20)[-200:]
    assert lanes <= min(settled)
    assert max(settled) <= 3 * lanes + 1


def test_a_server_that_can_do_everything_gets_the_ceiling() -> None:
    """And never more than that."""
    server = Simulated(8, lanes=100, noise=0.5)
    assert set(server.run(10)[-200:]) == {8}
    assert server.most_in_flight == 8


def test_a_server_that_slows_down_is_asked_less_and_one_that_recovers_as_before() -> None:
    """Half of its lanes go, and come back."""
    server = Simulated(16, lanes=8)
    server.run(1, at_once=1)
    before = server.run(10)[-1]
    server.lanes = 1
    assert max(server.run(20)[-50:]) <= 4
    server.lanes = 8
    assert server.run(20)[-1] >= min(before, 8)


def test_a_hung_server_is_left_with_one_batch_and_comes_back() -> None:
    """Each round of time-outs halves the limit; it never falls below one, and grows again once there are answers."""
    server = Simulated(8, lanes=8)
    server.run(5)
    server.hangs = True
    limits = server.run(3 * 2.25)
    assert limits[-1] == 1
    assert set(server.run(60)) == {1}
    server.hangs = False
    assert server.run(3)[-1] == 8


def test_one_congestion_is_counted_once() -> None:
    """Eight batches that end late together shrink the limit as one does."""
    now = 0.0
    limit = ConcurrencyLimit(16, clock=lambda: now)
    limit.end(limit.begin(), KIND, failed=False)
    away = [limit.begin() for _ in range(8)]
    now = 1.0
    for begun in away:
        limit.end(begun, KIND, failed=True)
    assert limit.value == 4
    assert limit.in_flight == 0


def test_a_lookup_that_always_takes_long_does_not_look_like_a_queue() -> None:
    """Each kind of batch is compared with its own kind, so a quick lookup beside a slow one changes nothing."""
    now = 0.0
    limit = ConcurrencyLimit(8, clock=lambda: now)
    for _ in range(200):
        for kind, seconds in (("quick", 0.002), ("slow", 0.4)):
            away = [limit.begin() for _ in range(limit.value)]
            now += seconds
            for begun in away:
                limit.end(begun, kind, failed=False)
    assert limit.value == 8


def test_what_is_slower_for_good_becomes_usual() -> None:
    """A table that has grown is no queue: batches that are alone teach the new time."""
    server = Simulated(8, lanes=8, service_s=0.01)
    server.run(5)
    server.service_s = 0.1
    server.run(30)
    assert server.limit.value == 8


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    """Little traffic says nothing of what the server could do."""
    server = Simulated(16, lanes=16)
    assert set(server.run(20, at_once=2)) == {8}


def test_batches_that_say_nothing_of_the_server_change_nothing() -> None:
    """A bad value is no trouble of the silo's."""
    limit = ConcurrencyLimit(8)
    before = limit.value
    for _ in range(50):
        limit.begin()
        limit.leave()
    assert (limit.value, limit.in_flight) == (before, 0)


def test_the_cap_on_negatives_holds_over_any_time_and_forgives_a_burst() -> None:
    """Never more than the burst and the rate together, and the rate in full."""
    now = 0.0
    cap = NegativeCap(50, 200, clock=lambda: now)
    kept = 0
    for tick in range(10_000):
        now = tick / 1000
        kept += cap.allow()
    assert 200 + 50 * 9.9 <= kept <= 200 + 50 * 10
    assert not cap.allow()
    now += 3600
    assert sum(cap.allow() for _ in range(1000)) == 200


def test_hedges_are_a_few_in_a_hundred() -> None:
    """However many batches are late."""
    budget = HedgeBudget(share=0.05, burst=5)
    hedged = 0
    for _ in range(1000):
        budget.earn()
        hedged += budget.spend()
    assert hedged <= 5 + 50
