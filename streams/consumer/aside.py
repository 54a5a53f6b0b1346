"""Sets cases aside: parks what failed for good, adds to what is parked, keeps what belongs to no case. Many at once."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from streams.consumer.fence import Fence
from streams.consumer.fuse import Fuse
from streams.consumer.lanes import Item, Lane, Lanes, Stray, Verdict, Work
from streams.consumer.limits import LEAST_DELAY_S, Retry
from streams.consumer.mirror import Mirror
from streams.consumer.parking import Parked, Parking
from streams.consumer.spill import STAGE
from streams.failpoints import reach
from streams.outages import DATABASE_AWAY, DATABASE_ERRORS

log = logging.getLogger(__name__)

_BEHIND = Verdict("appended", None, "waits behind an event of its case that failed")


class Aside:
    """What the dispatcher does with work that is not to be handed out. Its own errors only make the lanes wait.

    `finish` is called for what is kept in Postgres now: work and outcome. `fence` gives the right to write, or raises
    Fenced. A `fuse` that blows leaves by FuseBlown, with nothing parked.
    """

    def __init__(
        self,
        lanes: Lanes,
        parking: Parking,
        *,
        group: str,
        retry: Retry,
        fence: Callable[[Iterable[int]], Fence],
        finish: Callable[[Work, str], None],
        fuse: Fuse | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self._lanes = lanes
        self._parking = parking
        self._group = group
        self._retry = retry
        self._fence = fence
        self._finish = finish
        self._fuse = fuse
        self._mirror = mirror
        self.parked: set[UUID] = set()
        self.resuming: set[UUID] = set()

    def forget(self) -> None:
        """Drops what belonged to the partitions held until now."""
        self.parked.clear()
        self.resuming.clear()

    def takes(self, lane: Lane, head: Item) -> bool:
        """Whether this lane is to be set aside instead of handed out."""
        return lane.verdict is not None or lane.key in self.parked or head.event is None

    async def put(self, works: Sequence[Work]) -> None:
        """Parks, appends or keeps each of these lanes as a whole."""
        strays: list[Work] = []
        parks: list[Work] = []
        appends: list[Work] = []
        for work in works:
            lane, problem = work.lane, work.items[0].problem
            if not lane.alive:
                continue
            is_new = lane.verdict is not None or lane.key not in self.parked
            if is_new and lane.verdict is None and problem is not None:
                lane.verdict = Verdict(problem.stage, problem.field, problem.reason, "poison")
            whole = Work(lane, tuple(lane.queue))
            (strays if isinstance(lane.key, Stray) else parks if is_new else appends).append(whole)
        if self._fuse is not None and (strays or parks):
            # who was in the way has not failed
            self._fuse.check([work.lane.key for work in (*strays, *parks) if _stage(work.lane) != STAGE])
        for work in strays:
            await self._keep(work)
        if parks:
            await self._park(parks)
        if appends:
            await self._append(appends)

    async def _keep(self, work: Work) -> None:
        verdict = _verdict(work.lane)
        try:
            await self._parking.keep_stray(work.items[0], verdict, self._fence([work.lane.partition]))
        except DATABASE_ERRORS as error:
            self._wait([work], error)
            return
        self._parked(work, verdict, "stray")

    async def _park(self, works: Sequence[Work]) -> None:
        parked = [
            Parked(work.lane.key, work.items, _verdict(work.lane), max(1, work.lane.attempts))
            for work in works
            if isinstance(work.lane.key, UUID)
        ]
        reach("consumer.before_park")
        try:
            await self._parking.park_many(parked, self._fence(work.lane.partition for work in works))
        except DATABASE_ERRORS as error:
            if len(works) > 1 and not isinstance(error, DATABASE_AWAY):
                # one of them cannot be stored: it must not keep the others in memory
                for work in works:
                    await self._park([work])
            else:
                self._wait(works, error)
            return
        self.parked.update(one.case_id for one in parked)
        reach("consumer.after_park")
        for work in works:
            head = work.items[0]
            self._copy(work, _verdict(work.lane))
            self._parked(work, _verdict(work.lane), "parked" if head.event is not None else "undecodable")

    async def _append(self, works: Sequence[Work]) -> None:
        items = {work.lane.key: work.items for work in works if isinstance(work.lane.key, UUID)}
        held = self._fence(work.lane.partition for work in works)
        try:
            not_parked = await self._parking.append_many(items, held)
        except DATABASE_ERRORS as error:
            if len(works) > 1 and not isinstance(error, DATABASE_AWAY):
                for work in works:
                    await self._append([work])
            else:
                self._wait(works, error)
            return
        for work in works:
            key = work.lane.key
            if key not in not_parked:
                self._copy(work, _BEHIND)
                self._finish(work, "appended")
            elif key in self.resuming:
                # It was un-parked this instant; who resumes it takes it out of `parked`, and then it is handed out.
                self._cool(work.lane, LEAST_DELAY_S)
            else:
                self.parked.discard(key)
                self._lanes.give_back(work.lane)

    def _copy(self, work: Work, verdict: Verdict) -> None:
        if self._mirror is not None:
            lane = work.lane
            self._mirror.put(work.items, verdict, attempts=lane.attempts, failed_at=lane.failed_at)

    def _parked(self, work: Work, verdict: Verdict, outcome: str) -> None:
        log.warning("consumer.parked", extra={"group": self._group, "stage": verdict.stage, "field": verdict.field})
        self._finish(work, outcome)

    def _wait(self, works: Sequence[Work], error: BaseException) -> None:
        log.warning("consumer.parking_failed", extra={"group": self._group, "error": type(error).__name__})
        for work in works:
            self._cool(work.lane, self._retry.delay_s(3))

    def _cool(self, lane: Lane, delay_s: float) -> None:
        self._lanes.cool(lane, asyncio.get_running_loop().time() + delay_s)


def _stage(lane: Lane) -> str | None:
    return None if lane.verdict is None else lane.verdict.stage


def _verdict(lane: Lane) -> Verdict:
    return lane.verdict or Verdict("envelope", None, "cannot be read")
