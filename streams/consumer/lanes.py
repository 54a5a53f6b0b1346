"""One lane a case: its events wait in order, and a failing case holds up nobody but itself."""

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from streams.errors import Undecodable
from streams.events import CaseEvent


class Stray(NamedTuple):
    """Where a record lies that belongs to no case."""

    partition: int
    offset: int


LaneKey = UUID | Stray


@dataclass(frozen=True, slots=True)
class Item:
    """One record on its way: its event, or why it could not be read. `timestamp`: the record's own, in milliseconds."""

    partition: int
    offset: int
    key: bytes | None
    headers: Sequence[tuple[str, bytes]]
    value: bytes | None
    size: int
    event: CaseEvent | None
    problem: Undecodable | None = None
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a case is parked: where it failed, at which field, and what was said; never a personal value.

    `kind`: `permanent`, `retryable` (and the attempts were used up), `poison` (not readable) or `pressure`.
    """

    stage: str
    field: str | None
    reason: str
    kind: str = "permanent"


@dataclass(eq=False, slots=True)
class Lane:
    """The events of one case that are here, oldest first. `verdict` is set once its head is to be parked.

    `suspect`: a batch failed or was slow and this case may be why; `alone`: only by itself can it be told.
    """

    key: LaneKey
    partition: int
    queue: deque[Item] = field(default_factory=deque)
    attempts: int = 0
    failed_at: datetime | None = None
    verdict: Verdict | None = None
    suspect: bool = False
    alone: bool = False
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """What was taken from one lane: its first `items`. Until it comes back nobody else takes from that lane."""

    lane: Lane
    items: tuple[Item, ...]


class Lanes:
    """The lanes of one consumer. Every lane is ready, cooling or taken; only ready ones are handed out, in turn."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._cooling: list[tuple[float, int, Lane]] = []
        self._tie = itertools.count()
        self.events = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def add(self, key: LaneKey, item: Item) -> None:
        """Puts a record at the end of its lane."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, item.partition)
            self._ready.append(lane)
        lane.queue.append(item)
        self.events += 1
        self.bytes += item.size

    def take(self, events: int) -> Work | None:
        """Takes up to `events` records from the lane whose turn it is; None when no lane is ready."""
        while self._ready:
            lane = self._ready.popleft()
            if lane.alive:
                return Work(lane, tuple(itertools.islice(lane.queue, events)))
        return None

    def settle(self, work: Work) -> None:
        """Takes the handled records out of their lane; the next ones may be taken in turn."""
        self.advance(work)
        self.give_back(work.lane)

    def advance(self, work: Work) -> None:
        """Takes the handled records out of their lane, which stays taken: what is next in it has failed."""
        lane = work.lane
        if not lane.alive:
            return
        for _ in work.items:
            item = lane.queue.popleft()
            self.events -= 1
            self.bytes -= item.size
        lane.attempts = 0
        lane.failed_at = None
        lane.verdict = None
        lane.suspect = lane.alone = False

    def give_back(self, lane: Lane) -> None:
        """Makes a taken lane ready again, or ends it when nothing is left in it."""
        if not lane.alive:
            return
        if lane.queue:
            self._ready.append(lane)
        else:
            lane.alive = False
            del self._lanes[lane.key]

    def cool(self, lane: Lane, until: float) -> None:
        """Keeps a taken lane back until a time: its head stays its head."""
        if lane.alive:
            heapq.heappush(self._cooling, (until, next(self._tie), lane))

    def warm(self, now: float) -> None:
        """Makes the lanes ready whose time has come."""
        while self._cooling and self._cooling[0][0] <= now:
            self.give_back(heapq.heappop(self._cooling)[2])

    @property
    def cooling(self) -> list[Lane]:
        """The lanes that wait for their time."""
        return [lane for _, _, lane in self._cooling if lane.alive]

    def take_cooling(self, lanes: Collection[Lane]) -> None:
        """Takes some of them before their time."""
        if lanes:
            taken = {id(lane) for lane in lanes}
            self._cooling = [each for each in self._cooling if id(each[2]) not in taken]
            heapq.heapify(self._cooling)

    @property
    def ready(self) -> bool:
        """Whether `take` would give something."""
        while self._ready and not self._ready[0].alive:
            self._ready.popleft()
        return bool(self._ready)

    @property
    def next_due(self) -> float | None:
        """When the first cooling lane is ready again."""
        return self._cooling[0][0] if self._cooling else None

    def clear(self) -> None:
        """Forgets everything: the partitions are gone, and Kafka still has the records. Taken lanes are dead."""
        for lane in self._lanes.values():
            lane.alive = False
        self._lanes.clear()
        self._ready.clear()
        self._cooling.clear()
        self.events = self.bytes = 0
