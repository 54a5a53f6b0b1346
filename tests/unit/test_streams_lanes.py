"""Lanes and watermarks against small models of what they promise."""

from collections import defaultdict
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from streams.consumer.lanes import Item, Lanes, Work
from streams.consumer.limits import Retry
from streams.consumer.offsets import Watermark
from streams.testing import case_event

CASES = [UUID(int=number) for number in range(1, 5)]


def item(offset: int, case_id: UUID, partition: int = 0) -> Item:
    return Item(partition, offset, None, [], b"x" * 10, 10, case_event(case_id=case_id))


class LanesMachine(RuleBasedStateMachine):
    """Random intake, handling, failure and revocation; the model is a list of offsets per case."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.watermark = Watermark()
        self.model: dict[UUID, list[int]] = defaultdict(list)
        self.busy: set[UUID] = set()
        self.cooling: dict[UUID, float] = {}
        self.settled: set[int] = set()
        self.delivered: list[int] = []
        self.now = 0.0

    @rule(case_id=st.sampled_from(CASES), gap=st.integers(1, 3))
    def deliver(self, case_id: UUID, gap: int) -> None:
        offset = (self.delivered[-1] if self.delivered else 0) + gap
        assert self.watermark.deliver(offset, self.now)
        assert not self.watermark.deliver(offset, self.now)
        self.delivered.append(offset)
        self.lanes.add(case_id, item(offset, case_id))
        self.model[case_id].append(offset)

    @rule(target=taken, events=st.integers(1, 4))
    def take(self, events: int) -> object:
        work = self.lanes.take(events)
        if work is None:
            return multiple()
        case_id = work.lane.key
        assert isinstance(case_id, UUID)
        assert case_id not in self.busy | self.cooling.keys()
        assert [each.offset for each in work.items] == self.model[case_id][: len(work.items)]
        self.busy.add(case_id)
        return work

    @rule(work=consumes(taken))
    def settle(self, work: Work) -> None:
        self.lanes.settle(work)
        if not work.lane.alive and work.lane.key not in self.busy:
            return
        for each in work.items:
            self.watermark.settle(each.offset)
            self.settled.add(each.offset)
            self.model[work.lane.key].remove(each.offset)  # type: ignore[index]
        self.busy.discard(work.lane.key)

    @rule(work=consumes(taken), delay=st.floats(0, 5))
    def fail(self, work: Work, delay: float) -> None:
        self.lanes.cool(work.lane, self.now + delay)
        self.busy.discard(work.lane.key)
        self.cooling[work.lane.key] = self.now + delay  # type: ignore[index]

    @rule(work=consumes(taken))
    def return_untouched(self, work: Work) -> None:
        self.lanes.give_back(work.lane)
        self.busy.discard(work.lane.key)

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.lanes.warm(self.now)
        self.cooling = {case_id: due for case_id, due in self.cooling.items() if due > self.now}

    @invariant()
    def counts_are_right(self) -> None:
        waiting = sum(len(offsets) for offsets in self.model.values())
        assert self.lanes.events == waiting
        assert self.lanes.bytes == 10 * waiting
        assert len(self.lanes) == sum(bool(offsets) for offsets in self.model.values())
        assert self.lanes.ready == any(
            offsets and case_id not in self.busy | self.cooling.keys() for case_id, offsets in self.model.items()
        )
        assert self.lanes.next_due == (min(self.cooling.values()) if self.cooling else None)

    @invariant()
    def only_what_is_contiguous_is_committable(self) -> None:
        committable = self.watermark.committable
        if not self.delivered:
            assert committable is None
            return
        unsettled = [offset for offset in self.delivered if offset not in self.settled]
        assert committable == (unsettled[0] if unsettled else self.delivered[-1] + 1)


TestLanes = LanesMachine.TestCase


@given(st.permutations(range(8)), st.integers(0, 1000))
def test_any_order_of_settling_ends_at_the_same_offset(order: list[int], start: int) -> None:
    """However records are settled, nothing is committed over an open one, and at the end everything is."""
    watermark = Watermark()
    for offset in range(8):
        watermark.deliver(start + 2 * offset, float(offset))
    open_ones = set(range(8))
    for done in order:
        watermark.settle(start + 2 * done)
        watermark.settle(start + 2 * done)
        open_ones.discard(done)
        expected = start + 2 * min(open_ones) if open_ones else start + 15
        assert watermark.committable == expected
        assert watermark.oldest_at == (float(min(open_ones)) if open_ones else None)
    assert watermark.held == 0


def test_a_revoked_lane_takes_nothing_back() -> None:
    """What was taken before a revocation changes nothing afterwards: the record will be delivered again."""
    lanes = Lanes()
    case_id = uuid4()
    lanes.add(case_id, item(1, case_id))
    work = lanes.take(1)
    assert work is not None
    lanes.clear()
    lanes.add(case_id, item(1, case_id))
    lanes.settle(work)
    lanes.cool(work.lane, 0.0)
    lanes.warm(1.0)
    assert (lanes.events, len(lanes)) == (1, 1)
    again = lanes.take(1)
    assert again is not None
    assert again.lane is not work.lane
    assert lanes.take(1) is None


def test_ready_lanes_take_turns() -> None:
    """A busy case does not starve the others."""
    lanes = Lanes()
    for offset in range(50):
        lanes.add(CASES[0], item(offset, CASES[0]))
    lanes.add(CASES[1], item(50, CASES[1]))
    first, second = lanes.take(1), lanes.take(1)
    assert first is not None
    assert second is not None
    assert {first.lane.key, second.lane.key} == {CASES[0], CASES[1]}


@pytest.mark.parametrize("attempts", [0, 1, 4, 1000])
def test_delays_stay_below_their_limit(attempts: int) -> None:
    """Delays are random below a doubling limit with a cap, and never less than the recipient asked for."""
    retry = Retry(attempts=5, first_delay_s=0.5, longest_delay_s=4.0)
    delays = [retry.delay_s(attempts) for _ in range(200)]
    assert 0 < min(delays) <= max(delays) <= min(4.0, 0.5 * 2 ** min(attempts, 10))
    assert max(delays) - min(delays) > 0.1
    assert retry.delay_s(attempts, retry_after=60.0) >= 60.0


@given(st.permutations(range(6)))
def test_the_last_record_is_the_one_before_the_watermark(order: list[int]) -> None:
    """Whatever is settled ahead, the record that marks the position is the newest one with no open one before it."""
    watermark = Watermark()
    marks = [UUID(int=number) for number in range(6)]
    for number in range(6):
        watermark.deliver(10 + 3 * number, 0.0)
    done: set[int] = set()
    for number in order:
        watermark.settle(10 + 3 * number, marks[number])
        done.add(number)
        through = next((each for each in range(6) if each not in done), 6)
        assert watermark.last == ((10 + 3 * (through - 1), marks[through - 1]) if through else None)
