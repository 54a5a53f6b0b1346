"""Hands events to a handler and does what follows from its answer: settle, try again later, park, or stop."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime

from streams.consumer.aside import Aside
from streams.consumer.calling import Caller, Errors
from streams.consumer.fence import Fence
from streams.consumer.fuse import Fuse
from streams.consumer.handlers import BatchHandler, CaseHandler
from streams.consumer.lanes import Item, Lane, Lanes, Verdict, Work
from streams.consumer.limits import Retry
from streams.consumer.mirror import Mirror
from streams.consumer.parking import Parking
from streams.consumer.spill import REASON, STAGE, Spill
from streams.errors import Fenced, Rejected, Retryable, Unavailable, Untried
from streams.failpoints import reach
from streams.metrics import StreamMetrics
from streams.waiting import set_within

log = logging.getLogger(__name__)


class Dispatcher:
    """Takes work from the lanes and carries it out: batches one after the other, or many single cases at once.

    What failed in a batch, or may have been why it failed, is tried beside the other batches, so that it holds up only
    its like: together where the handler names what it could not apply, else each by itself. The last attempt before a
    case is parked is always made alone: nobody is parked for the company it was in.
    """

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
        settled: Callable[[Iterable[Item], str], None],
        parallel: int,
        batch_events: int,
        handler_timeout_s: float,
        fuse: Fuse | None = None,
        spill: Spill | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.caller = Caller(handler, group=group, timeout_s=handler_timeout_s)
        self._lanes = lanes
        self._aside = Aside(
            lanes,
            parking,
            group=group,
            retry=retry,
            fence=self.fence,
            finish=self._finish,
            fuse=fuse,
            mirror=mirror,
        )
        self._fuse = fuse
        self._spill = spill
        self._spilled: list[Work] = []
        self._group = group
        self._topic = topic
        self._retry = retry
        self._metrics = metrics
        self._seconds = metrics.event_seconds.labels(group)
        self._settled = settled
        self._slots = asyncio.Semaphore(parallel)
        self._batch_events = batch_events
        # A handler that names nothing is one that nobody promised to call twice at once.
        self._turn = nullcontext() if self.caller.names_each else asyncio.Lock()
        self._suspects: deque[Work] = deque()
        self._suspected = asyncio.Event()
        self._gate = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_flight = 0
        self._away = 0
        self._away_until = 0.0
        self.wake = asyncio.Event()
        self.epochs: dict[int, int] = {}
        self.parked = self._aside.parked
        self.resuming = self._aside.resuming

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
        self._suspects.clear()
        self._spilled.clear()
        self._aside.forget()

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
        if not self.caller.takes_batches:
            await self._run_cases()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_batches())
            tasks.create_task(self._run_suspects())

    async def _run_cases(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                await self._until_ready()
                if self._spilled:
                    self.begin()
                    try:
                        await self._put_aside(self._take_spilled())
                    finally:
                        self.end()
                work = self._take(1)
                if work is None:
                    self._slots.release()
                    continue
                self.begin()
                tasks.create_task(self._carry(work))

    async def _carry(self, work: Work) -> None:
        try:
            await (self._put_aside([work]) if self._aside.takes(work.lane, work.items[0]) else self._hand([work]))
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
        aside = self._take_spilled()
        room = self._batch_events
        while room > 0 and (work := self._take(room)) is not None:
            room -= len(work.items)
            if self._aside.takes(work.lane, work.items[0]):
                aside.append(work)
            elif work.lane.suspect or work.lane.alone:
                self._suspects.append(work)
                self._suspected.set()
            else:
                together.append(work)
        if together:
            async with self._turn:
                await self._hand(together)
        if aside:
            await self._put_aside(aside)

    async def _run_suspects(self) -> None:
        while True:
            await self._suspected.wait()
            await self._gate.wait()
            away_s = self._away_until - asyncio.get_running_loop().time()
            if away_s > 0:
                await asyncio.sleep(away_s)
                continue
            works = self._next_suspects()
            if not works:
                self._suspected.clear()
                continue
            self.begin()
            try:
                async with self._turn:
                    await self._hand(works)
            finally:
                self.end()

    def _next_suspects(self) -> list[Work]:
        works: list[Work] = []
        room = self._batch_events
        while self._suspects and room > 0:
            work = self._suspects[0]
            lane = work.lane
            is_alone = lane.alone or not self.caller.names_each or lane.attempts + 1 >= self._retry.attempts
            if works and is_alone:
                break
            self._suspects.popleft()
            if lane.alive:
                works.append(work)
                room = 0 if is_alone else room - len(work.items)
        return works

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
            self._spilled += self._to_spill()
            if self._lanes.ready or self._spilled:
                return
            due = self._lanes.next_due
            await set_within(self.wake, 1.0 if due is None else min(1.0, max(0.0, due - now)))

    def _to_spill(self) -> list[Work]:
        if self._spill is None or self._away:
            # while the recipient is away everything waits, and nobody is in anybody's way
            return []
        lanes = self._spill.choose()
        for lane in lanes:
            lane.verdict = Verdict(STAGE, None, REASON, STAGE)
        self._metrics.spilled.labels(self._group).inc(len(lanes))
        return [Work(lane, (lane.queue[0],)) for lane in lanes]

    def _take_spilled(self) -> list[Work]:
        spilled, self._spilled = self._spilled, []
        return spilled

    def _take(self, events: int) -> Work | None:
        work = self._lanes.take(events)
        if work is None:
            return None
        readable = 0
        while readable < len(work.items) and work.items[readable].event is not None:
            readable += 1
        return Work(work.lane, work.items[:readable]) if readable else work

    async def _hand(self, works: Sequence[Work]) -> None:
        if not self.is_open:
            # It closed while these waited for their turn, or while a batch was being searched.
            for work in works:
                self._give_back(work.lane)
            return
        events = [item.event for work in works for item in work.items if item.event is not None]
        held = self.fence(item.partition for work in works for item in work.items)
        reach("consumer.before_handler")
        answer = await self.caller.call(events, held)
        reach("consumer.after_handler")
        if isinstance(answer, Mapping):
            await self._settle_each(works, answer)
        elif isinstance(answer, Unavailable):
            self._wait_for_recipient(works, answer)
        else:
            await self._blame(works, answer)

    async def _settle_each(self, works: Sequence[Work], errors: Errors) -> None:
        """Settles what is done and does with each named case what its first error asks for."""
        self._away = 0
        if not errors:
            for work in works:
                self._done(work)
            return
        to_park: list[Work] = []
        for work in works:
            done = 0
            while done < len(work.items) and _id_of(work.items[done]) not in errors:
                done += 1
            if done == len(work.items):
                self._done(work)
                continue
            if done:
                self._done(Work(work.lane, work.items[:done]), ends=False)
            failed = Work(work.lane, work.items[done:])
            error = errors[failed.items[0].event.event_id]  # type: ignore[union-attr] # it was handed out
            if isinstance(error, Unavailable):
                self._wait_for_recipient([failed], error)
            elif self._is_over(failed, error):
                to_park.append(failed)
        if to_park:
            await self._put_aside(to_park)

    def _done(self, work: Work, *, ends: bool = True) -> None:
        now = datetime.now(UTC)
        for item in work.items:
            if item.event is not None:
                seconds = (now - item.event.at).total_seconds()
                self._seconds.observe(max(0.0, seconds))
        if self._fuse is not None:
            self._fuse.passed(work.lane.key)
        self._finish(work, "done", ends=ends)

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
        if len(guilty) > 1:
            if isinstance(answer, Rejected):
                middle = len(works) // 2
                await self._hand(works[:middle])
                await self._hand(works[middle:])
                return
            for work in guilty:
                # It may be any of them, so it counts against none: each is tried by itself now.
                work.lane.alone = True
                self._count(work, "retried")
                self._cool(work.lane, self._retry.delay_s(0, answer.retry_after))
            return
        for work in works:
            if work is not guilty[0]:
                self._give_back(work.lane)
        if self._is_over(guilty[0], answer):
            await self._put_aside(guilty)

    def _is_over(self, work: Work, error: Rejected | Retryable) -> bool:
        """Whether the case is to be parked, with its verdict set; otherwise it is kept back for another attempt."""
        lane = work.lane
        lane.failed_at = lane.failed_at or datetime.now(UTC)
        if isinstance(error, Rejected):
            lane.verdict = Verdict("handler", error.field, error.reason)
            return True
        lane.suspect = True
        if not isinstance(error, Untried):
            lane.attempts += 1
        if lane.attempts >= self._retry.attempts:
            lane.verdict = Verdict("handler", None, error.reason, "retryable")
            return True
        self._count(work, "retried")
        self._cool(lane, self._retry.delay_s(max(0, lane.attempts - 1), error.retry_after))
        return False

    async def _put_aside(self, works: Sequence[Work]) -> None:
        await self._aside.put(works)
        self.wake.set()

    def _give_back(self, lane: Lane) -> None:
        self._lanes.give_back(lane)
        self.wake.set()

    def _cool(self, lane: Lane, delay_s: float) -> None:
        self._lanes.cool(lane, asyncio.get_running_loop().time() + delay_s)
        self.wake.set()

    def _finish(self, work: Work, outcome: str, *, ends: bool = True) -> None:
        self._count(work, outcome)
        if work.lane.alive:
            if ends:
                self._lanes.settle(work)
            else:
                self._lanes.advance(work)
            self._settled(work.items, outcome)
            self.wake.set()

    def _count(self, work: Work, outcome: str) -> None:
        self._metrics.events.labels(self._group, outcome).inc(len(work.items))


def _id_of(item: Item) -> object:
    return item.event.event_id if item.event is not None else None
