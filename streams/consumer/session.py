"""One membership of a consumer group: what was fetched, what is settled, what is told to Kafka, from join to leave."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import asyncpg
from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError

from streams import recovery
from streams.consumer import fence, position
from streams.consumer.assigned import Assigned, blocked
from streams.consumer.client import group_client
from streams.consumer.dispatch import Dispatcher
from streams.consumer.fence import Fence
from streams.consumer.fuse import Fuse
from streams.consumer.handlers import BatchHandler, CaseHandler, TakesPartitions
from streams.consumer.inbox import Inbox
from streams.consumer.intake import Admitted, Intake, Unknown
from streams.consumer.lanes import Item, Lanes, Stray
from streams.consumer.limits import ConsumerLimits
from streams.consumer.mirror import Mirror
from streams.consumer.parking import Parking
from streams.consumer.position import Start, mark_of
from streams.consumer.records import item_of
from streams.consumer.resuming import Resumer
from streams.consumer.space import Space
from streams.consumer.spill import Spill
from streams.consumer.watchdog import Watchdog
from streams.errors import Fenced, Misconfigured
from streams.events import case_of
from streams.failpoints import reach
from streams.metrics import StreamMetrics
from streams.outages import DATABASE_ERRORS
from streams.recovery import Shut
from streams.waiting import set_within

log = logging.getLogger(__name__)

# Asked for when no partition may be read: getmany then hands out nothing, keeps what is prefetched, tells of
# coordination errors, and keeps this member from looking idle. pause() would throw the prefetched records away.
_NOTHING = TopicPartition("__none__", 0)
_FETCH_EVENTS = 500
_POLL_S = 0.2
_CLOSE_AT_ONCE_S = 2.0


class DrainExceeded(Exception):
    """Work that was begun did not end within the budget of a rebalance."""


class Session(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Runs from joining the group to leaving it. Any error it cannot mend ends it; a new one may follow."""

    def __init__(
        self,
        bootstrap: str,
        group: str,
        topic: str,
        handler: BatchHandler | CaseHandler,
        *,
        pool: asyncpg.Pool,
        metrics: StreamMetrics,
        limits: ConsumerLimits,
        client_id: str,
        detects_restore: bool = False,
        fuse: Fuse | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self._group = group
        self._topic = topic
        self._handler = handler
        self._pool = pool
        self._metrics = metrics
        self._limits = limits
        self._lanes = Lanes()
        self._parking = Parking(pool, group, topic, timeout_s=limits.call_timeout_s)
        self._dispatcher = Dispatcher(
            handler,
            self._lanes,
            self._parking,
            group=group,
            topic=topic,
            retry=limits.retry,
            metrics=metrics,
            settled=self._settled,
            parallel=limits.parallel,
            batch_events=limits.batch_events,
            handler_timeout_s=limits.handler_timeout_s,
            fuse=fuse,
            mirror=mirror,
            spill=Spill(self._lanes, limits, lambda: blocked(self._partitions, limits)),
        )
        self._resumer = Resumer(self._dispatcher, self._parking, group=group, limits=limits)
        self._inbox = Inbox(pool, group, topic, timeout_s=limits.call_timeout_s)
        self._intake = Intake(
            self._inbox, metrics, group=group, cases=limits.known_cases, needs_gateway=detects_restore
        )
        self._bootstrap = bootstrap
        self._kafka = group_client(bootstrap, group, client_id, limits)
        self._watchdog = Watchdog(
            self._kafka, topic, group=group, limits=limits, metrics=metrics, clock=asyncio.get_running_loop().time
        )
        self._partitions: dict[int, Assigned] = {}
        self._assignment = 0
        self._to_open = asyncio.Event()
        self._room = asyncio.Event()
        self._failed = asyncio.Event()
        self._stopping = False
        self._space = Space(self._lanes, limits)

    @property
    def has_moved(self) -> bool:
        """Whether it ever fetched anything."""
        return self._watchdog.has_moved

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until `stop` is set; then ends what was begun, commits and leaves. Cancelling it leaves at once."""
        grace_s = _CLOSE_AT_ONCE_S
        try:
            async with asyncio.timeout(self._limits.call_timeout_s * 3):
                await self._kafka.start()
            # Not before start(): that would wait for the whole group to agree.
            self._kafka.subscribe([self._topic], listener=self)
            await self._work(stop)
            grace_s = self._limits.call_timeout_s
        finally:
            await self._leave(grace_s)

    async def _work(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(work)
                for work in (
                    self._fetch(),
                    self._open_partitions(),
                    self._dispatcher.run(),
                    self._resumer.run(),
                    self._commit_regularly(),
                    self._end_when_failed(),
                    self._watchdog.run(self._partitions, lambda: self._dispatcher.is_open or self._stopping),
                )
            ]
            await stop.wait()
            # Before the drain: a rebalance that falls into it, or was under way, must not begin anything again.
            self._stopping = True
            if not await self._dispatcher.drain(self._limits.drain_s):
                log.warning("consumer.not_drained", extra={"group": self._group})
            await self._commit()
            for task in tasks:
                task.cancel()

    async def _leave(self, grace_s: float) -> None:
        self._dispatcher.forget()
        for gauge in (self._metrics.lanes, self._metrics.buffered_events, self._metrics.buffered_bytes):
            gauge.labels(self._group).set(0)
        try:
            async with asyncio.timeout(grace_s):
                await self._kafka.stop()
        except (KafkaError, OSError, TimeoutError) as error:
            # The group notices by itself when no more heartbeats come.
            log.warning("consumer.not_left", extra={"group": self._group, "error": type(error).__name__})

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Ends what was begun and commits, before anybody else may have the partitions. aiokafka swallows errors."""
        del revoked  # it takes all of them away, always
        self._watchdog.turned()
        # At once, so that a take-over that is under way cannot open the gate while this waits.
        self._assignment += 1
        try:
            if self._partitions and not await self._dispatcher.drain(self._limits.drain_s):
                self._failed.set()
            else:
                await self._commit()
        except Fenced:
            # The next owner was faster: what was not noted, it handles again.
            log.warning("consumer.fenced_at_revocation", extra={"group": self._group})
        finally:
            self._partitions.clear()
            self._dispatcher.forget()
            self._intake.forget()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Notes the partitions; none is read before its fence stands (`_open_partitions`)."""
        self._assignment += 1
        self._partitions.clear()
        self._partitions.update({partition.partition: Assigned() for partition in assigned})
        self._watchdog.turned()
        self._metrics.rebalances.labels(self._group).inc()
        self._to_open.set()

    async def _open_partitions(self) -> None:
        attempts = 0
        while True:
            await self._to_open.wait()
            self._to_open.clear()
            assignment, partitions = self._assignment, sorted(self._partitions)
            if not partitions or self._stopping:
                continue
            try:
                held, starts, parked = await self._take_over(partitions)
            except (Fenced, Misconfigured):
                raise
            # Whatever the hook or the database did, nothing is handed out until it works; only the class is told.
            except Exception as error:  # noqa: BLE001
                log.warning("consumer.not_opened", extra={"group": self._group, "error": type(error).__name__})
                await asyncio.sleep(self._limits.retry.delay_s(attempts))
                attempts += 1
                self._watchdog.turned()
                self._to_open.set()
                continue
            attempts = 0
            if assignment == self._assignment and not self._stopping:
                for number, start in starts.items():
                    self._kafka.seek(TopicPartition(self._topic, number), start.offset)
                    self._partitions[number].start = start.offset
                self._dispatcher.epochs.update(held.epochs)
                self._dispatcher.parked.update(parked)
                self._watchdog.turned()
                self._dispatcher.open()
                self._room.set()

    async def _take_over(self, partitions: Sequence[int]) -> tuple[Fence, Mapping[int, Start], set[UUID]]:
        limit_s = self._limits.call_timeout_s
        held = await fence.bump(self._pool, self._group, self._topic, partitions, timeout_s=limit_s)
        reach("consumer.after_bump")
        if isinstance(self._handler, TakesPartitions):
            async with asyncio.timeout(self._limits.handler_timeout_s):
                await self._handler.on_assigned(held)
        reach("consumer.after_register")
        starts = await self._find_starts(held)
        return held, starts, await self._parking.parked(partitions)

    async def _find_starts(self, held: Fence) -> Mapping[int, Start]:
        """Where to go on. Kafka's own offset counts only for a partition that was never noted here."""
        limit_s = self._limits.call_timeout_s
        noted = await position.stored(self._pool, held, timeout_s=limit_s)
        async with asyncio.timeout(limit_s):
            committed = {
                number: await self._kafka.committed(TopicPartition(self._topic, number))
                for number in held.epochs
                if number not in noted
            }
        starts = await position.find_starts(self._bootstrap, self._topic, noted, committed, timeout_s=limit_s)
        await position.restart(self._pool, held, starts, timeout_s=limit_s)
        for start in starts.values():
            self._metrics.positions.labels(self._group, start.outcome).inc()
        return starts

    async def _fetch(self) -> None:
        while True:
            readable = self._readable()
            self._watchdog.polled(wanted=bool(readable))
            if not readable:
                self._room.clear()
                await self._kafka.getmany(_NOTHING, timeout_ms=0)
                await set_within(self._room, _POLL_S)
                continue
            room = self._space.records(_FETCH_EVENTS)
            try:
                fetched = await self._kafka.getmany(*readable, timeout_ms=int(_POLL_S * 1000), max_records=room)
            except NoOffsetForPartitionError:
                # Kafka has no offset of this group yet; where to begin was found out and sought by ourselves.
                continue
            if not fetched:
                continue
            self._watchdog.fetched()
            reach("consumer.after_fetch")
            assignment = self._assignment
            items = [item for records in fetched.values() for record in records if (item := self._read(record))]
            self._space.note(items)
            admitted = await self._admit(items)
            # What was revoked meanwhile will be delivered again, here or elsewhere.
            if assignment == self._assignment:
                self._take_in(admitted)

    async def _admit(self, items: Sequence[Item]) -> Admitted:
        """Asks the inbox until it answers; while it does not, Kafka still hears of this member."""
        attempts = 0
        while True:
            try:
                return await self._intake.admit(items)
            except DATABASE_ERRORS as error:
                log.warning("consumer.inbox_away", extra={"group": self._group, "error": type(error).__name__})
            except Unknown as ahead:
                detail = {"case_id": str(ahead.case_id), "in_kafka": ahead.version, "in_gateway": ahead.in_gateway}
                await recovery.shut(self._pool, str(ahead), detail, timeout_s=self._limits.call_timeout_s)
                log.critical("consumer.gateway_shut", extra={"group": self._group, "reason": str(ahead)})
                raise Shut(str(ahead)) from None
            await self._kafka.getmany(_NOTHING, timeout_ms=0)
            self._watchdog.polled(wanted=False)
            await asyncio.sleep(self._limits.retry.delay_s(attempts))
            attempts += 1

    def _readable(self) -> list[TopicPartition]:
        """The partitions to read from now: back-pressure is to leave out those that have enough here."""
        if not self._dispatcher.is_open or self._space.is_full or self._intake.is_full:
            return []
        return [
            TopicPartition(self._topic, number)
            for number, partition in self._partitions.items()
            if number in self._dispatcher.epochs and partition.watermark.held < self._limits.partition_events
        ]

    def _read(self, record: ConsumerRecord) -> Item | None:
        """The record as an item; None when its partition does not stand yet, or it was delivered before."""
        partition = self._partitions.get(record.partition)
        now = asyncio.get_running_loop().time()
        # Not open: fetched across a rebalance, from where Kafka thought we were. It is sought anew before it opens.
        if partition is None or record.partition not in self._dispatcher.epochs:
            return None
        if not partition.watermark.deliver(record.offset, now):
            return None
        return item_of(record)

    def _take_in(self, admitted: Admitted) -> None:
        self._intake.remember(admitted)
        for item in admitted.new:
            case_id = item.event.case_id if item.event is not None else case_of(item.key)
            self._lanes.add(case_id or Stray(item.partition, item.offset), item)
        if admitted.again:
            self._metrics.events.labels(self._group, "duplicate").inc(len(admitted.again))
            self._move_watermarks(admitted.again)
        self._dispatcher.wake.set()

    def _settled(self, items: Iterable[Item], outcome: str) -> None:
        del outcome  # done, or kept in Postgres: both are behind us
        items = list(items)
        self._intake.settle(items)
        self._move_watermarks(items)
        self._room.set()

    def _move_watermarks(self, items: Iterable[Item]) -> None:
        for item in items:
            partition = self._partitions.get(item.partition)
            if partition is not None:
                partition.watermark.settle(item.offset, mark_of(item))

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._limits.commit_every_s)
            await self._commit()
            self._take_census()

    async def _commit(self) -> None:
        """Notes how far everything is settled, then tells Kafka. A failure is no loss: the next one tells the same.

        The gateway's database first: the position there is the one that counts, and it moves together with the inbox.
        """
        seen = self._intake.due
        states = dict(self._partitions)
        due = {n: now for n, each in states.items() if (now := each.position) is not None and now != each.noted}
        if not due and not seen and all(each.to_tell == each.told for each in states.values()):
            return
        reach("consumer.before_commit")
        try:
            if due or seen:
                held = self._dispatcher.fence({*due, *(partition for partition, _ in seen.values())})
                await self._inbox.advance({case_id: version for case_id, (_, version) in seen.items()}, due, held)
                self._intake.noted(seen)
                for number, each in due.items():
                    states[number].noted = each
            reach("consumer.after_inbox")
            await self._tell(states)
        except (KafkaError, *DATABASE_ERRORS) as error:
            self._metrics.commits.labels(self._group, "failed").inc()
            log.warning("consumer.commit_failed", extra={"group": self._group, "error": type(error).__name__})

    async def _tell(self, states: Mapping[int, Assigned]) -> None:
        offsets = {number: to_tell for number, each in states.items() if (to_tell := each.to_tell) is not None}
        offsets = {number: offset for number, offset in offsets.items() if offset != states[number].told}
        if not offsets:
            return
        async with asyncio.timeout(self._limits.call_timeout_s):
            await self._kafka.commit({TopicPartition(self._topic, number): each for number, each in offsets.items()})
        reach("consumer.after_commit")
        self._metrics.commits.labels(self._group, "done").inc()
        for number, offset in offsets.items():
            states[number].told = offset

    def _take_census(self) -> None:
        now = asyncio.get_running_loop().time()
        oldest = [at for each in self._partitions.values() if (at := each.watermark.oldest_at) is not None]
        self._metrics.lanes.labels(self._group).set(len(self._lanes))
        self._metrics.buffered_events.labels(self._group).set(self._lanes.events)
        self._metrics.buffered_bytes.labels(self._group).set(self._lanes.bytes)
        self._metrics.oldest_unsettled.labels(self._group).set(now - min(oldest) if oldest else 0)
        self._metrics.parked_cases.labels(self._group).set(len(self._dispatcher.parked))

    async def _end_when_failed(self) -> None:
        await self._failed.wait()
        raise DrainExceeded
