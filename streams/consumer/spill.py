"""Makes room: cases that wait for another attempt are parked when they keep the others out."""

from collections.abc import Callable, Mapping

from streams.consumer.lanes import Lane, Lanes
from streams.consumer.limits import ConsumerLimits

STAGE = "pressure"
REASON = "other cases needed the room while this one waited"

_NEARLY = 0.8
# Cooling lanes are the reason for a full buffer when they fill half of it, and no more when they fill a quarter.
_MANY = 0.5
_FEW = 0.25

Blocked = Callable[[], Mapping[int, int]]


class Spill:
    """Chooses among the cooling lanes those that are to be parked. A full buffer alone is no reason: it means work.

    `blocked` names the partitions that can take nothing more because of one record, and its offset.
    """

    def __init__(self, lanes: Lanes, limits: ConsumerLimits, blocked: Blocked) -> None:
        self._lanes = lanes
        self._events = limits.events
        self._size = limits.bytes
        self._blocked = blocked

    def choose(self) -> list[Lane]:
        """Takes them out of the cooling lanes: they are the caller's now, like any taken lane."""
        blocked = self._blocked()
        is_full = self._lanes.events >= self._events * _NEARLY or self._lanes.bytes >= self._size * _NEARLY
        if not blocked and not is_full:
            return []
        # one that has its verdict waits for the database that is to keep it
        cooling = [lane for lane in self._lanes.cooling if lane.verdict is None and lane.queue]
        chosen = [lane for lane in cooling if blocked.get(lane.partition) == lane.queue[0].offset]
        if is_full:
            chosen += [lane for lane in self._deepest(cooling) if lane not in chosen]
        self._lanes.take_cooling(chosen)
        return chosen

    def _deepest(self, cooling: list[Lane]) -> list[Lane]:
        sizes = {id(lane): (len(lane.queue), sum(item.size for item in lane.queue)) for lane in cooling}
        events = sum(held for held, _ in sizes.values())
        size = sum(held for _, held in sizes.values())
        if events < self._events * _MANY and size < self._size * _MANY:
            return []
        chosen = []
        for lane in sorted(
            cooling, key=lambda lane: max(_shares(sizes[id(lane)], self._events, self._size)), reverse=True
        ):
            if events < self._events * _FEW and size < self._size * _FEW:
                break
            chosen.append(lane)
            events -= sizes[id(lane)][0]
            size -= sizes[id(lane)][1]
        return chosen


def _shares(held: tuple[int, int], events: int, size: int) -> tuple[float, float]:
    return held[0] / events, held[1] / size
