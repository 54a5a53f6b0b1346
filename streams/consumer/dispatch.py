"""Hands events to a handler and does what follows from its answer: settle, try again later, park, or stop."""

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from streams.consumer.fence import Fence
from streams.consumer.handlers import BatchHandler, CaseHandler
from streams.consumer.lanes import Item, Lane, Lanes, Stray, Verdict, Work
from streams.consumer.limits import LEAST_DELAY_S, Retry
from streams.consumer.parking import Parking
from streams.errors import Fenced, Misconfigured, Rejected, Retryable, Unavailable
from streams.events import CaseEvent
from streams.failpoints import reach
from streams.metrics import StreamMetrics
from streams.outages import DATABASE_ERRORS
from streams.waiting import set_within

log = logging.getLogger(__name__)


class Dispatcher:
    """Takes work from the lanes and carries it out: batches one after the other, or many single cases at once."""

    def __init__(
        self,
        handler: BatchHandler | CaseHandler,
        lanes: Lanes,
        parking: Parking,
        *,
        group: str,
        topic: str,
        retry: Retry,
        metrics: StreamMetrics,
        settled: Callable[[Iterable[Item]], None],
        parallel: int,
        batch_events: int,
        handler_timeout_s: float,
    ) -> None:
        self._handler = handler
        self._lanes = lanes
        self._parking = parking
        self._group = group
        self._topic = topic
        self._retry = retry
        self._metrics = metrics
        self._seconds = metrics.event_seconds.labels(group)
        self._settled = settled
        self._slots = asyncio.Semaphore(parallel)
        self._batch_events = batch_events
        self._handler_timeout_s = handler_timeout_s
        self._gate = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_flight = 0
        self._away = 0
        self._away_until = 0.0
        self.wake = asyncio.Event()
        self.epochs: dict[int, int] = {}
        self.parked: set[UUID] = set()
        self.resuming: set[UUID] = set()

    @property
    def is_open(self) -> bool:
        """Whether work may be begun."""
        return self._gate.is_set()

    def open(self) -> None:
        """Lets work begin."""
        self._gate.set()

    async def drain(self, within_s: float) -> bool:
        """Begins nothing more and waits for what was begun; False if it did not end in time."""
        self._gate.clear()
        return await set_within(self._idle, within_s)

    def forget(self) -> None:
        """Drops everything that belonged to the partitions held until now."""
        self._lanes.clear()
        self.epochs.clear()
        self.parked.clear()
        self.resuming.clear()

    def fence(self, partitions: Iterable[int]) -> Fence:
        """The right to write for these partitions; raises Fenced for one that is not held."""
        try:
            return Fence(self._group, self._topic, {number: self.epochs[number] for number in set(partitions)})
        except KeyError:
            raise Fenced from None

    def begin(self) -> None:
        """Marks work that `drain` must wait for. Call it without awaiting after the gate was seen open."""
        self._in_flight += 1
        self._idle.clear()

    def end(self) -> None:
        """Marks the end of that work."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    async def run(self) -> None:
        """Works until cancelled; raises Fenced, Misconfigured, or whatever is no error of a handler."""
        if isinstance(self._handler, BatchHandler):
            await self._run_batches()
        else:
            await self._run_cases()

    async def call(self, events: Sequence[CaseEvent], held: Fence) -> Rejected | Retryable | None:
        """Calls the handler once: None when it is done. Raises only Fenced and Misconfigured."""
        try:
            async with asyncio.timeout(self._handler_timeout_s):
                if isinstance(self._handler, BatchHandler):
                    await self._handler.apply(events, held)
                else:
                    await self._handler.handle(events[0], held)
        except (Rejected, Retryable) as answer:
            return answer
        except (Fenced, Misconfigured):
            raise
        except TimeoutError:
            return Retryable("the handler did not end in time")
        except OSError as error:
            return Unavailable(f"no connection: {type(error).__name__}")
        # A fault in a handler must neither lose the event nor stop the other cases: it counts as an attempt, and the
        # case is parked for a person when it does not go away. Only the class is told: a text may quote the event.
        except Exception as error:  # noqa: BLE001
            log.error(  # noqa: TRY400
                "consumer.handler_failed",
                extra={"group": self._group, "error": type(error).__name__, "where": _where(error)},
            )
            return Retryable(f"unexpected {type(error).__name__} in the handler")
        return None

    async def _run_cases(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                await self._until_ready()
                work = self._take(1)
                if work is None:
                    self._slots.release()
                    continue
                self.begin()
                tasks.create_task(self._carry(work))

    async def _carry(self, work: Work) -> None:
        try:
            await (self._hand([work]) if self._can_be_handed(work) else self._set_aside(work))
        finally:
            self.end()
            self._slots.release()

    async def _run_batches(self) -> None:
        while True:
            await self._until_ready()
            self.begin()
            try:
                await self._run_batch()
            finally:
                self.end()

    async def _run_batch(self) -> None:
        together: list[Work] = []
        others: list[Work] = []
        room = self._batch_events
        while room > 0 and (work := self._take(room)) is not None:
            # What failed before is tried by itself: if it fails again, it is the one, and the others are through.
            is_suspect = work.lane.attempts > 0 or not self._can_be_handed(work)
            (others if is_suspect else together).append(work)
            room -= len(work.items)
        if together:
            await self._hand(together)
        for work in others:
            await (self._hand([work]) if self._can_be_handed(work) else self._set_aside(work))

    async def _until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gate.wait()
            self.wake.clear()
            now = loop.time()
            self._lanes.warm(now)
            if now < self._away_until:
                await set_within(self.wake, self._away_until - now)
                continue
            if self._lanes.ready:
                return
            due = self._lanes.next_due
            await set_within(self.wake, 1.0 if due is None else min(1.0, max(0.0, due - now)))

    def _take(self, events: int) -> Work | None:
        work = self._lanes.take(events)
        if work is None:
            return None
        readable = 0
        while readable < len(work.items) and work.items[readable].event is not None:
            readable += 1
        return Work(work.lane, work.items[:readable]) if readable else work

    def _can_be_handed(self, work: Work) -> bool:
        lane = work.lane
        return lane.verdict is None and lane.key not in self.parked and work.items[0].event is not None

    async def _hand(self, works: Sequence[Work]) -> None:
        events = [item.event for work in works for item in work.items if item.event is not None]
        held = self.fence(item.partition for work in works for item in work.items)
        reach("consumer.before_handler")
        answer = await self.call(events, held)
        reach("consumer.after_handler")
        if answer is None:
            self._done(works)
        elif isinstance(answer, Unavailable):
            self._wait_for_recipient(works, answer)
        else:
            await self._blame(works, answer)

    def _done(self, works: Sequence[Work]) -> None:
        self._away = 0
        now = datetime.now(UTC)
        for work in works:
            for item in work.items:
                if item.event is not None:
                    seconds = (now - item.event.at).total_seconds()
                    self._seconds.observe(max(0.0, seconds))
            self._finish(work, "done")

    def _wait_for_recipient(self, works: Sequence[Work], answer: Unavailable) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._away_until:
            self._away_until = now + self._retry.delay_s(self._away, answer.retry_after)
            self._away += 1
            log.warning("consumer.recipient_away", extra={"group": self._group, "reason": answer.reason})
        for work in works:
            self._count(work, "retried")
            self._give_back(work.lane)

    async def _blame(self, works: Sequence[Work], answer: Rejected | Retryable) -> None:
        """Finds whose fault it was. The others go back to be handed out again at once."""
        guilty = [work for work in works if work.lane.key == answer.case_id] or list(works)
        if isinstance(answer, Rejected) and len(guilty) > 1:
            middle = len(works) // 2
            await self._hand(works[:middle])
            await self._hand(works[middle:])
            return
        blamed = {work.lane.key for work in guilty}
        for work in works:
            if work.lane.key not in blamed:
                self._give_back(work.lane)
        for work in guilty:
            if isinstance(answer, Rejected):
                await self._park(work, Verdict("handler", answer.field, answer.reason))
            else:
                await self._retry_later(work, answer)

    async def _retry_later(self, work: Work, answer: Retryable) -> None:
        lane = work.lane
        lane.attempts += 1
        if lane.attempts >= self._retry.attempts:
            await self._park(work, Verdict("handler", None, answer.reason))
            return
        self._count(work, "retried")
        self._cool(lane, self._retry.delay_s(lane.attempts - 1, answer.retry_after))

    async def _set_aside(self, work: Work) -> None:
        lane, head = work.lane, work.items[0]
        if lane.verdict is not None:
            await self._park(work, lane.verdict)
        elif isinstance(lane.key, UUID) and lane.key in self.parked:
            await self._append(work, lane.key)
        elif head.problem is not None:
            await self._park(work, Verdict(head.problem.stage, head.problem.field, head.problem.reason))

    async def _park(self, work: Work, verdict: Verdict) -> None:
        lane = work.lane
        lane.verdict = verdict
        everything = Work(lane, tuple(lane.queue))
        if not everything.items:
            return
        held = self.fence([lane.partition])
        reach("consumer.before_park")
        try:
            if isinstance(lane.key, Stray):
                await self._parking.keep_stray(everything.items[0], verdict, held)
            else:
                await self._parking.park(lane.key, everything.items, verdict, max(1, lane.attempts), held)
                self.parked.add(lane.key)
        except DATABASE_ERRORS as error:
            self._not_parked(lane, error)
            return
        reach("consumer.after_park")
        log.warning("consumer.parked", extra={"group": self._group, "stage": verdict.stage, "field": verdict.field})
        self._finish(everything, _outcome(lane, work.items[0]))

    async def _append(self, work: Work, case_id: UUID) -> None:
        lane = work.lane
        everything = Work(lane, tuple(lane.queue))
        try:
            appended = await self._parking.append(case_id, everything.items, self.fence([lane.partition]))
        except DATABASE_ERRORS as error:
            self._not_parked(lane, error)
            return
        if appended:
            self._finish(everything, "appended")
        elif case_id in self.resuming:
            # It was un-parked this instant; who resumes it takes it out of `parked`, and then it is handed out.
            self._cool(lane, LEAST_DELAY_S)
        else:
            self.parked.discard(case_id)
            self._give_back(lane)

    def _not_parked(self, lane: Lane, error: BaseException) -> None:
        log.warning("consumer.parking_failed", extra={"group": self._group, "error": type(error).__name__})
        self._cool(lane, self._retry.delay_s(3))

    def _give_back(self, lane: Lane) -> None:
        self._lanes.give_back(lane)
        self.wake.set()

    def _cool(self, lane: Lane, delay_s: float) -> None:
        self._lanes.cool(lane, asyncio.get_running_loop().time() + delay_s)
        self.wake.set()

    def _finish(self, work: Work, outcome: str) -> None:
        self._count(work, outcome)
        if work.lane.alive:
            self._lanes.settle(work)
            self._settled(work.items)
            self.wake.set()

    def _count(self, work: Work, outcome: str) -> None:
        self._metrics.events.labels(self._group, outcome).inc(len(work.items))


def _where(error: BaseException) -> str:
    """File and line of the fault: enough to find it, and nothing that the error quotes."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"


def _outcome(lane: Lane, head: Item) -> str:
    if isinstance(lane.key, Stray):
        return "stray"
    return "parked" if head.event is not None else "undecodable"
