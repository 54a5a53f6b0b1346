"""The consumer on a real Kafka and a real Postgres: nothing lost, order within a case, whatever fails."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

import streams.events
from streams import failpoints
from streams import fence as fences
from streams.consumer import Consumer
from streams.dispatch import Retry
from streams.errors import Fenced, Misconfigured, Rejected, Retryable, Unavailable
from streams.events import CaseEvent, encode
from streams.failpoints import Injected
from streams.fence import Fence
from streams.handlers import BatchHandler, CaseHandler
from streams.limits import ConsumerLimits, SessionTimeouts
from streams.metrics import StreamMetrics
from streams.outbox import producer
from streams.parking import parked_cases, resume
from streams.testing import case_event
from streams.topics import ensure_topics

PARTITIONS = 4
QUICK = ConsumerLimits(
    commit_every_s=0.1,
    resume_every_s=0.1,
    drain_s=5,
    retry=Retry(attempts=3, first_delay_s=0.05, longest_delay_s=0.2),
    sessions=SessionTimeouts(session_ms=6000, heartbeat_ms=200, rebalance_ms=6000),
)

Behaviour = Callable[[CaseEvent], Awaitable[None] | None]


@dataclass
class Recorder:
    """A case handler that notes what it did, and does what the test says first."""

    behaviour: Behaviour = lambda _: None
    applied: list[CaseEvent] = field(default_factory=list)
    fences: list[Fence] = field(default_factory=list)
    at_work: set[UUID] = field(default_factory=set)
    widest: int = 0

    async def handle(self, event: CaseEvent, fence: Fence) -> None:
        assert event.case_id not in self.at_work, "two events of one case at once"
        self.at_work.add(event.case_id)
        self.widest = max(self.widest, len(self.at_work))
        try:
            wait = self.behaviour(event)
            if wait is not None:
                await wait
            self.applied.append(event)
            self.fences.append(fence)
        finally:
            self.at_work.discard(event.case_id)

    def versions(self, case_id: UUID) -> list[int]:
        return [event.version for event in self.applied if event.case_id == case_id]


@dataclass
class BatchRecorder:
    """A batch handler that notes its batches."""

    behaviour: Callable[[Sequence[CaseEvent]], None] = lambda _: None
    batches: list[list[CaseEvent]] = field(default_factory=list)
    calls: int = 0

    async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
        self.calls += 1
        self.behaviour(events)
        self.batches.append(list(events))

    @property
    def applied(self) -> list[CaseEvent]:
        return [event for batch in self.batches for event in batch]


@dataclass
class Bench:
    """A topic of its own with what is needed to fill it, consume it and look at the group."""

    bootstrap: str
    topic: str
    group: str
    pool: asyncpg.Pool
    writer: AIOKafkaProducer
    metrics: StreamMetrics = field(default_factory=lambda: StreamMetrics(CollectorRegistry()))

    async def write(self, *events: CaseEvent) -> None:
        for event in events:
            key, value, headers = encode(event)
            await self.writer.send(self.topic, value, key=key, headers=headers)
        await self.writer.flush()

    async def write_raw(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        await self.writer.send_and_wait(self.topic, value, key=key, headers=headers)

    def consumer(self, handler: BatchHandler | CaseHandler, limits: ConsumerLimits = QUICK) -> Consumer:
        return Consumer(
            self.bootstrap, self.group, self.topic, handler, pool=self.pool, metrics=self.metrics, limits=limits
        )

    @asynccontextmanager
    async def consuming(
        self, handler: BatchHandler | CaseHandler, limits: ConsumerLimits = QUICK
    ) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.consumer(handler, limits).run(stop))
            try:
                yield
            finally:
                stop.set()

    async def committed(self) -> int:
        """The sum of the group's committed offsets: how many records it need never see again."""
        reader = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=self.group, enable_auto_commit=False)
        await reader.start()
        try:
            return sum(
                [await reader.committed(TopicPartition(self.topic, number)) or 0 for number in range(PARTITIONS)]
            )
        finally:
            await reader.stop()

    def counted(self, outcome: str) -> float:
        count: float = self.metrics.events.labels(self.group, outcome)._value.get()
        return count


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    topic = f"{topic_prefix}cases.changes.v1"
    await ensure_topics(servers.kafka_bootstrap, [topic], PARTITIONS, 1)
    writer = producer(servers.kafka_bootstrap, "test")
    await writer.start()
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=10, server_settings={"search_path": "gateway"}
    ) as pool:
        yield Bench(servers.kafka_bootstrap, topic, f"{topic_prefix}street-team", pool, writer)
    await writer.stop()


async def until(condition: Callable[[], bool], bound_s: float = 30) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():
            await asyncio.sleep(0.02)


def history(cases: int, versions: int) -> list[CaseEvent]:
    ids = [uuid4() for _ in range(cases)]
    return [case_event(version, case_id=case_id) for version in range(1, versions + 1) for case_id in ids]


def assert_in_order(applied: Sequence[CaseEvent]) -> None:
    last: dict[UUID, int] = {}
    for event in applied:
        assert event.version > last.get(event.case_id, 0)
        last[event.case_id] = event.version


async def test_every_event_reaches_its_handler_in_order(bench: Bench) -> None:
    """Many cases at once, one event of a case at a time, each once, and everything is committed at the stop."""
    events = history(cases=50, versions=6)
    await bench.write(*events)
    handler = Recorder(lambda _: asyncio.sleep(0.001))
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 300)
    assert {event.event_id for event in handler.applied} == {event.event_id for event in events}
    assert_in_order(handler.applied)
    assert handler.widest > 8
    assert await bench.committed() == 300
    assert bench.counted("done") == 300


async def test_a_batch_handler_gets_many_events_at_once(bench: Bench) -> None:
    """A recipient with its own database is given batches, cases in order, with a fence for exactly their partitions."""
    await bench.write(*history(cases=100, versions=5))
    handler = BatchRecorder()
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 500)
    assert_in_order(handler.applied)
    assert max(len(batch) for batch in handler.batches) > 50
    assert await bench.committed() == 500


async def test_a_stopped_consumer_continues_where_it_was(bench: Bench) -> None:
    """A restart repeats nothing that was committed and leaves nothing out."""
    first, second = Recorder(), Recorder()
    await bench.write(*history(10, 2))
    async with bench.consuming(first):
        await until(lambda: len(first.applied) == 20)
    await bench.write(*history(10, 2))
    async with bench.consuming(second):
        await until(lambda: len(second.applied) == 20)
    assert not {event.event_id for event in first.applied} & {event.event_id for event in second.applied}


async def test_a_failing_case_holds_up_nobody_else(bench: Bench) -> None:
    """While one case is tried again, all others flow; then it catches up, in order."""
    events = history(cases=20, versions=3)
    sick = events[0].case_id
    is_well = asyncio.Event()
    tries = Counter[int]()

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick and not is_well.is_set():
            tries[event.version] += 1
            raise Retryable("locked by another user")

    handler = Recorder(behave)
    await bench.write(*events)
    patient = replace(QUICK, retry=Retry(attempts=10_000, first_delay_s=0.01, longest_delay_s=0.05))
    async with bench.consuming(handler, patient):
        await until(lambda: len(handler.applied) == 57 and tries[1] > 3)
        assert await bench.committed() < 60
        is_well.set()
        await until(lambda: len(handler.applied) == 60)
    assert set(tries) == {1}
    assert handler.versions(sick) == [1, 2, 3]
    assert await bench.committed() == 60


async def test_retry_after_is_obeyed(bench: Bench) -> None:
    """A recipient that asks for time gets it."""
    times: list[float] = []

    def behave(_: CaseEvent) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise Retryable("busy", retry_after=0.6)

    handler = Recorder(behave)
    await bench.write(case_event())
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 1)
    assert times[1] - times[0] >= 0.6


@pytest.mark.parametrize("refusal", [Rejected("no such street", "usrn"), Retryable("locked"), KeyError("Avery Quill")])
async def test_a_case_that_cannot_be_applied_is_parked_with_all_that_follows(bench: Bench, refusal: Exception) -> None:
    """Refused, out of attempts or a fault in the handler: the case waits in order, the offsets are committed."""
    events = history(cases=5, versions=3)
    sick = events[0].case_id

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise refusal

    handler = Recorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 12 and bench.counted("parked") + bench.counted("appended") == 3)
        await bench.write(case_event(4, case_id=sick), case_event(5, case_id=sick))
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 5)
    assert await bench.committed() == 17
    parked = await parked_cases(bench.pool, bench.group)
    assert [(case.case_id, case.events, case.stage) for case in parked] == [(sick, 5, "handler")]
    assert parked[0].attempts == (1 if isinstance(refusal, Rejected) else 3)
    assert parked[0].field == ("usrn" if isinstance(refusal, Rejected) else None)
    assert "Quill" not in parked[0].reason
    order = await bench.pool.fetch("select version from parked_event order by position")
    assert [row["version"] for row in order] == [1, 2, 3, 4, 5]


async def test_a_parked_case_stays_parked_after_a_restart(bench: Bench) -> None:
    """The next process knows what is parked and appends to it without asking the handler."""
    sick = uuid4()
    handler = Recorder(_reject)
    await bench.write(case_event(1, case_id=sick))
    async with bench.consuming(handler):
        await until(lambda: bench.counted("parked") == 1)
    await bench.write(case_event(2, case_id=sick))
    cured = Recorder()
    async with bench.consuming(cured):
        await until(lambda: bench.counted("appended") == 1)
    assert cured.applied == []


def _reject(_: CaseEvent) -> None:
    raise Rejected("no such street")


async def test_a_parked_case_is_resumed_in_order(bench: Bench) -> None:
    """On request its events are handled, oldest first, while new ones keep coming; then it is a case like any other."""
    sick = uuid4()
    is_well = False

    async def behave(event: CaseEvent) -> None:
        await asyncio.sleep(0.005)
        if not is_well:
            raise Rejected("no such street")

    handler = Recorder(behave)
    async with bench.consuming(handler):
        await bench.write(*(case_event(version, case_id=sick) for version in range(1, 21)))
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 20)
        assert await resume(bench.pool, bench.group, [sick]) == 1
        await _until_refused_again(bench)
        assert handler.applied == []
        is_well = True
        assert await resume(bench.pool, bench.group) == 1
        for version in range(21, 61):
            await bench.write(case_event(version, case_id=sick))
            await asyncio.sleep(0.004)
        await until(lambda: len(handler.applied) == 60)
    assert handler.versions(sick) == list(range(1, 61))
    assert await parked_cases(bench.pool) == []
    assert await bench.pool.fetchval("select count(*) from parked_event") == 0
    assert await bench.committed() == 60


async def _until_refused_again(bench: Bench) -> None:
    async with asyncio.timeout(20):
        while (await parked_cases(bench.pool))[0].resuming:
            await asyncio.sleep(0.02)
    assert (await parked_cases(bench.pool))[0].attempts == 2


async def test_records_nobody_can_read_are_kept(bench: Bench) -> None:
    """One under a case's key is parked with its case; one without a case is kept with its reason; the rest flows."""
    case_id = uuid4()
    key, value, headers = encode(case_event(2, case_id=case_id))
    await bench.write(case_event(1, case_id=case_id))
    await bench.write_raw(key, b'{"case_id":', headers)
    await bench.write(case_event(3, case_id=case_id))
    await bench.write_raw(None, b"\x00\xff", [("ce_type", b"\xff\x00")])
    await bench.write_raw(b"case 42", value, headers)
    other = case_event()
    await bench.write(other)
    handler = Recorder()
    async with bench.consuming(handler):
        await until(
            lambda: bench.counted("undecodable") + bench.counted("appended") == 2 and bench.counted("stray") == 2
        )
        await until(lambda: len(handler.applied) == 2)
    assert {event.case_id for event in handler.applied} == {case_id, other.case_id}
    (parked,) = await parked_cases(bench.pool)
    assert (parked.case_id, parked.events, parked.stage) == (case_id, 2, "data")
    strays = await bench.pool.fetch("select key, value, stage, reason from stray_record order by key nulls first")
    assert [(row["key"], row["value"]) for row in strays] == [(None, b"\x00\xff"), (b"case 42", value)]
    assert all(row["reason"] for row in strays)
    assert await bench.committed() == 6


async def test_a_record_that_breaks_the_decoder_is_parked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error nobody thought of parks the record's case, naming only its class; the worker goes on with the rest."""
    odd, other = case_event(), case_event()
    decode = streams.events.decode

    def fragile(key: bytes | None, *rest: Any) -> CaseEvent:
        if key == str(odd.case_id).encode():
            raise RuntimeError("Avery Quill")
        return decode(key, *rest)

    monkeypatch.setattr(streams.events, "decode", fragile)
    await bench.write(odd, other)
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: bench.counted("undecodable") == 1 and len(handler.applied) == 1)
        assert await resume(bench.pool, bench.group) == 1
        await _until_refused_again(bench)
    (parked,) = await parked_cases(bench.pool)
    assert (parked.case_id, parked.reason) == (odd.case_id, "cannot be read (RuntimeError)")


async def test_one_bad_event_does_not_spoil_its_batch(bench: Bench) -> None:
    """A batch that is refused is halved until the bad case is alone; named, it is taken out at once."""
    events = history(cases=64, versions=1)
    sick, named = events[7].case_id, events[40].case_id

    def behave(batch: Sequence[CaseEvent]) -> None:
        if any(event.case_id == named for event in batch):
            raise Rejected("too long", "description", case_id=named)
        if any(event.case_id == sick for event in batch):
            raise Rejected("too long", "description")

    handler = BatchRecorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 62 and bench.counted("parked") == 2)
    assert {case.case_id for case in await parked_cases(bench.pool)} == {sick, named}
    assert await bench.committed() == 64


async def test_in_a_batch_that_is_tried_again_the_guilty_case_is_found(bench: Bench) -> None:
    """After a failure that blames nobody each case is tried by itself: only the sick one reaches the limit."""
    events = history(cases=30, versions=1)
    sick = events[7].case_id

    def behave(batch: Sequence[CaseEvent]) -> None:
        if any(event.case_id == sick for event in batch):
            raise Retryable("deadlock")

    handler = BatchRecorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 29 and bench.counted("parked") == 1)
    assert [case.case_id for case in await parked_cases(bench.pool)] == [sick]


@pytest.mark.parametrize("away", [Unavailable("starting up"), ConnectionRefusedError()])
async def test_a_recipient_that_is_away_parks_nobody(bench: Bench, away: Exception) -> None:
    """However long a recipient is down, no case is blamed: everything waits, and then flows."""
    calls = 0

    def behave(_: Sequence[CaseEvent]) -> None:
        nonlocal calls
        calls += 1
        if calls < 8:
            raise away

    handler = BatchRecorder(behave)
    await bench.write(*history(10, 2))
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 20)
    assert await parked_cases(bench.pool) == []
    assert_in_order(handler.applied)


async def test_a_misconfigured_connector_stops_and_parks_nothing(bench: Bench) -> None:
    """What only a person can mend stops the consumer with its reason; the events stay where they are."""

    def behave(_: CaseEvent) -> None:
        raise Misconfigured("the table street_jobs does not exist")

    await bench.write(*history(5, 1))
    with pytest.raises(Misconfigured, match="street_jobs"):
        await bench.consumer(Recorder(behave)).run(asyncio.Event())
    assert await parked_cases(bench.pool) == []
    assert await bench.committed() == 0
    assert bench.metrics.up.labels(bench.group)._value.get() == 0


async def test_two_consumers_share_the_partitions(bench: Bench) -> None:
    """A second process takes over part of the cases and gives them back under load; nothing is lost or repeated."""
    first, second = (Recorder(lambda _: asyncio.sleep(0.002)) for _ in range(2))
    ids = [uuid4() for _ in range(40)]
    written: set[tuple[UUID, int]] = set()
    is_enough = asyncio.Event()

    async def write() -> None:
        version = 0
        while not is_enough.is_set():
            version += 1
            await bench.write(*(case_event(version, case_id=case_id) for case_id in ids))
            written.update((case_id, version) for case_id in ids)
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group, bench.consuming(first):
        group.create_task(write())
        await until(lambda: len(first.applied) > 50)
        async with bench.consuming(second):
            await until(lambda: len(second.applied) > 200)
        now = len(first.applied)
        await until(lambda: len(first.applied) > now + 200)
        is_enough.set()
        await until(lambda: {_position(event) for event in first.applied + second.applied} == written)
    assert len(first.applied) + len(second.applied) == len(written)
    assert_in_order(first.applied)
    assert_in_order(second.applied)
    assert await bench.committed() == len(written)


def _position(event: CaseEvent) -> tuple[UUID, int]:
    return event.case_id, event.version


async def test_every_assignment_raises_the_fence(bench: Bench) -> None:
    """Whoever held a partition before cannot write after the next owner took it over."""
    event = case_event()
    first, second = Recorder(), Recorder()
    await bench.write(event)
    async with bench.consuming(first):
        await until(lambda: len(first.fences) == 1)
    await bench.write(case_event(2, case_id=event.case_id))
    async with bench.consuming(second):
        await until(lambda: len(second.fences) == 1)
    old, new = first.fences[0], second.fences[0]
    assert old.epochs.keys() == new.epochs.keys()
    async with bench.pool.acquire() as connection, connection.transaction():
        await fences.hold(connection, new, table=fences.GATEWAY)
        with pytest.raises(Fenced):
            await fences.hold(connection, old, table=fences.GATEWAY)


async def test_a_recipients_own_fence_stops_a_zombie(bench: Bench, database: Any) -> None:
    """A handler makes its epochs known in its database before the first event; an older owner can neither go on nor
    come back there."""
    async with asyncpg.create_pool(database.url, min_size=1, max_size=3) as recipient:
        await recipient.execute(fences.RECIPIENT_TABLE_SQL)

        class Fencing(Recorder):
            hooks = 0

            async def on_assigned(self, fence: Fence) -> None:
                self.hooks += 1
                if self.hooks == 1:
                    raise ConnectionRefusedError
                await fences.register(recipient, fence)

            async def handle(self, event: CaseEvent, fence: Fence) -> None:
                async with recipient.acquire() as connection, connection.transaction():
                    await fences.hold(connection, fence)
                    await super().handle(event, fence)

        handler = Fencing()
        await bench.write(case_event())
        async with bench.consuming(handler):
            await until(lambda: len(handler.applied) == 1)
        assert handler.hooks == 2
        old = handler.fences[0]
        newer = Fence(old.group, old.topic, {number: epoch + 1 for number, epoch in old.epochs.items()})
        await fences.register(recipient, newer)
        with pytest.raises(Fenced):
            await fences.register(recipient, old)
        async with recipient.acquire() as connection:
            with pytest.raises(Fenced):
                await fences.hold(connection, old)


async def test_a_fenced_consumer_joins_afresh(bench: Bench) -> None:
    """One rejected write makes it let go and come back with a new epoch; the event is not lost."""
    fenced_once = False

    def behave(_: CaseEvent) -> None:
        nonlocal fenced_once
        if not fenced_once:
            fenced_once = True
            raise Fenced

    handler = Recorder(behave)
    await bench.write(case_event())
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 1)
    assert bench.metrics.fenced.labels(bench.group)._value.get() == 1


async def test_a_zombie_cannot_park(bench: Bench) -> None:
    """Parking holds the fence: who lost the partition parks nothing and commits nothing over the new owner's head."""

    async def behave(event: CaseEvent) -> None:
        await bench.pool.execute("update partition_fence set epoch = epoch + 1 where epoch = 1")
        raise Rejected("no such street")

    handler = Recorder(behave)
    await bench.write(case_event())
    async with bench.consuming(handler):
        await until(lambda: bench.metrics.fenced.labels(bench.group)._value.get() == 1)
        await until(lambda: bench.counted("parked") == 1)
    assert len(await parked_cases(bench.pool)) == 1


async def test_memory_is_bounded_by_choosing_partitions(bench: Bench) -> None:
    """With a recipient that does not answer, no more is taken in than allowed, and the member stays in its group."""
    gate = asyncio.Event()
    handler = Recorder(lambda _: gate.wait())  # type: ignore[arg-type,return-value]
    limits = replace(QUICK, events=100, parallel=8)
    peak = 0.0
    async with bench.consuming(handler, limits):
        await bench.write(*history(cases=100, versions=10))
        await until(lambda: bench.metrics.buffered_events.labels(bench.group)._value.get() == 100)
        for _ in range(20):
            await asyncio.sleep(0.05)
            peak = max(peak, bench.metrics.buffered_events.labels(bench.group)._value.get())
        gate.set()
        await until(lambda: len(handler.applied) == 1000)
    assert peak == 100
    assert handler.widest <= 8
    assert bench.metrics.rebalances.labels(bench.group)._value.get() == 1


async def test_a_stop_waits_for_what_was_begun(bench: Bench) -> None:
    """What the handler is doing when the stop comes is finished and committed; nothing more is begun."""
    begun = asyncio.Event()

    async def behave(_: CaseEvent) -> None:
        begun.set()
        await asyncio.sleep(0.5)

    handler = Recorder(behave)
    await bench.write(*history(cases=1, versions=5))
    async with bench.consuming(handler):
        await begun.wait()
    assert [event.version for event in handler.applied] == [1]
    assert await bench.committed() == 1


async def test_a_handler_that_does_not_end_is_given_up_at_the_stop(bench: Bench) -> None:
    """A stop takes no longer than its budget; the unfinished event is delivered again."""
    begun = asyncio.Event()

    async def behave(_: CaseEvent) -> None:
        begun.set()
        await asyncio.sleep(3600)

    event = case_event()
    await bench.write(event)
    async with asyncio.timeout(15), bench.consuming(Recorder(behave), replace(QUICK, drain_s=0.2)):
        await begun.wait()
    again = Recorder()
    async with bench.consuming(again):
        await until(lambda: again.applied == [event])


async def test_a_handler_that_hangs_counts_as_an_attempt(bench: Bench) -> None:
    """No await of a handler lasts longer than its limit."""
    event = case_event()
    await bench.write(event)
    limits = replace(QUICK, handler_timeout_s=0.1, retry=Retry(attempts=2, first_delay_s=0.01))
    async with bench.consuming(Recorder(lambda _: asyncio.sleep(3600)), limits):
        await until(lambda: bench.counted("parked") == 1)
    assert (await parked_cases(bench.pool))[0].reason == "the handler did not end in time"


@pytest.mark.parametrize(
    "place",
    [
        "consumer.after_fetch",
        "consumer.before_handler",
        "consumer.after_handler",
        "consumer.before_park",
        "consumer.after_park",
        "consumer.before_commit",
        "consumer.after_commit",
    ],
)
async def test_a_consumer_that_breaks_anywhere_loses_nothing(bench: Bench, place: str) -> None:
    """Wherever the first one breaks off, the next one completes the work: each event applied, or parked once."""
    events = history(cases=10, versions=3)
    sick = events[0].case_id

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise Rejected("no such street")

    first, second = Recorder(behave), Recorder(behave)
    await bench.write(*events)
    failpoints.arm(f"{place}:raise")
    try:
        with pytest.raises(Injected):
            await bench.consumer(first).run(asyncio.Event())
    finally:
        failpoints.disarm()
    async with bench.consuming(second):
        await until(lambda: len({event.event_id for event in first.applied + second.applied}) == 27)
        async with asyncio.timeout(30):
            while await bench.committed() < 30:
                await asyncio.sleep(0.05)
    assert await bench.committed() == 30
    assert [case.events for case in await parked_cases(bench.pool)] == [3]
    for event in events:
        assert first.versions(event.case_id) in ([], [1], [1, 2], [1, 2, 3])


async def test_parking_waits_for_the_gateways_database(bench: Bench) -> None:
    """While parking is impossible the event is neither lost nor acknowledged, and healthy cases flow."""
    sick = uuid4()

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise Rejected("no such street")

    handler = Recorder(behave)
    await bench.pool.execute("alter table parked_event rename to away")
    await bench.write(case_event(1, case_id=sick), *history(10, 1))
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 10)
        assert await bench.committed() < 11
        await bench.pool.execute("alter table away rename to parked_event")
        await until(lambda: bench.counted("parked") == 1)
    assert await bench.committed() == 11


async def test_without_a_broker_it_waits_and_stops_when_told(bench: Bench) -> None:
    """A consumer outlives a Kafka that is not there, and a stop ends it at once."""
    stop = asyncio.Event()
    lonely = Consumer(
        "127.0.0.1:1", bench.group, bench.topic, Recorder(), pool=bench.pool, metrics=bench.metrics, limits=QUICK
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(lonely.run(stop))
        rebuilds = bench.metrics.rebuilds.labels(bench.group, "KafkaConnectionError")._value
        await until(lambda: rebuilds.get() >= 2)
        stop.set()
