"""The consumer with a handler that names what it could not apply: one round for all of a batch, whatever is in it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from streams.consumer.calling import Caller
from streams.consumer.fence import Fence
from streams.consumer.limits import Retry
from streams.consumer.replay import parked_cases
from streams.errors import Rejected, Retryable, Untried
from streams.events import CaseEvent
from tests.integration.consumer_bench import QUICK, Bench, assert_in_order, history, open_bench, until

Errors = dict[UUID, Rejected | Retryable]


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


@dataclass
class EachRecorder:
    """A handler of whole batches that names what `behaviour` refuses, with all that follows in the case."""

    behaviour: Callable[[CaseEvent], Rejected | Retryable | None] = lambda _: None
    before: Callable[[Sequence[CaseEvent]], Any] = lambda _: None
    deadline_s: float = 5.0
    batches: list[list[CaseEvent]] = field(default_factory=list)
    applied: list[CaseEvent] = field(default_factory=list)

    async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
        raise AssertionError("who names each is asked for each")

    async def apply_each(self, events: Sequence[CaseEvent], fence: Fence) -> Mapping[UUID, Rejected | Retryable]:
        self.batches.append(list(events))
        wait = self.before(events)
        if wait is not None:
            await wait
        errors: Errors = {}
        failed: dict[UUID, Rejected | Retryable] = {}
        for event in events:
            error = failed.get(event.case_id) or self.behaviour(event)
            if error is None:
                self.applied.append(event)
            else:
                error.case_id = event.case_id
                errors[event.event_id] = failed[event.case_id] = error
        return errors


async def test_bad_events_cost_no_further_calls(bench: Bench) -> None:
    """Twenty cases of a hundred are refused at their second version: each batch is handed out once, and they park."""
    events = history(cases=100, versions=3)
    sick = {event.case_id for event in events[:20]}
    handler = EachRecorder(
        lambda event: Rejected("too long", "notes") if event.case_id in sick and event.version == 2 else None
    )
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: bench.counted("done") + bench.counted("parked") + bench.counted("appended") == 300)
    assert sum(len(batch) for batch in handler.batches) <= 300
    assert Counter(event.version for event in handler.applied) == {1: 100, 2: 80, 3: 80}
    parked = await parked_cases(bench.pool)
    assert {(case.case_id, case.events, case.attempts, case.field) for case in parked} == {
        (each, 2, 1, "notes") for each in sick
    }
    assert await bench.committed() == 300
    assert_in_order(handler.applied)


async def test_what_failed_is_tried_beside_the_others(bench: Bench) -> None:
    """A second attempt that hangs holds up nobody: new cases flow, and the sick ones are tried together."""
    events = history(cases=30, versions=1)
    sick = {event.case_id for event in events[:5]}
    is_well, hangs = asyncio.Event(), asyncio.Event()
    tried: set[UUID] = set()

    def before(batch: Sequence[CaseEvent]) -> Any:
        cases = {event.case_id for event in batch}
        again = cases <= sick & tried
        tried.update(cases)
        if again:
            hangs.set()
        return is_well.wait() if again else None

    handler = EachRecorder(
        lambda event: Retryable("locked") if event.case_id in sick and not is_well.is_set() else None, before
    )
    patient = replace(QUICK, handler_timeout_s=30, retry=Retry(attempts=50, first_delay_s=0.05, longest_delay_s=0.1))
    handler.deadline_s = 20
    await bench.write(*events)
    async with bench.consuming(handler, patient):
        await until(lambda: hangs.is_set() and tried >= sick)
        await bench.write(*history(cases=40, versions=2))
        await until(lambda: len(handler.applied) == 105)
        is_well.set()
        await until(lambda: len(handler.applied) == 110)
    assert await parked_cases(bench.pool) == []
    assert await bench.committed() == 110


async def test_a_batch_that_fails_as_a_whole_parks_only_its_culprit(bench: Bench) -> None:
    """A fault that names nobody counts against nobody: each case is tried by itself, and one reaches the limit."""
    events = history(cases=12, versions=1)
    sick = events[3].case_id

    def before(batch: Sequence[CaseEvent]) -> None:
        if any(event.case_id == sick for event in batch):
            raise KeyError("Avery Quill")

    handler = EachRecorder(before=before)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 11 and bench.counted("parked") == 1)
    (parked,) = await parked_cases(bench.pool)
    assert (parked.case_id, parked.attempts) == (sick, 3)
    assert "Quill" not in parked.reason


async def test_a_case_is_parked_only_after_an_attempt_alone(bench: Bench) -> None:
    """Cases that fail only in each other's company are tried together, then each by itself, and none is parked."""
    events = history(cases=4, versions=1)
    handler = EachRecorder()
    handler.behaviour = lambda _: Retryable("slow") if len(handler.batches[-1]) > 1 else None
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 4)
    assert await parked_cases(bench.pool) == []


async def test_a_case_whose_turn_did_not_come_is_not_blamed(bench: Bench) -> None:
    """Untried counts as no attempt, however often it is the answer."""
    events = history(cases=2, versions=1)
    slow, fine = (event.case_id for event in events)
    answers = Counter[UUID]()

    def behave(event: CaseEvent) -> Rejected | Retryable | None:
        answers[event.case_id] += 1
        if event.case_id == fine:
            return Untried("others took too long") if answers[fine] < 8 else None
        return Retryable("slow")

    handler = EachRecorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 1 and bench.counted("parked") == 1)
    assert [case.case_id for case in await parked_cases(bench.pool)] == [slow]


async def test_a_search_ends_where_the_consumer_stops(bench: Bench) -> None:
    """The halving of a refused batch begins no further call once the consumer is to stop."""
    calls: list[float] = []
    stop = asyncio.Event()

    class Halved:
        async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
            calls.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.1)
            if len(calls) == 3:
                stop.set()
            raise Rejected("too long", "notes")

    await bench.write(*history(cases=64, versions=1))
    async with asyncio.timeout(30):
        await bench.consumer(Halved()).run(stop)
    assert len(calls) <= 4


def test_a_handler_that_may_outlast_its_limit_is_refused(bench: Bench) -> None:
    """The consumer would end the call first and could blame no case for it."""
    with pytest.raises(ValueError, match="the handler may take"):
        Caller(EachRecorder(deadline_s=60), group=bench.group, timeout_s=60)
