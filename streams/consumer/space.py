"""How much more a consumer may hold, in events and bytes."""

from collections.abc import Sequence

from streams.consumer.lanes import Item, Lanes
from streams.consumer.limits import ConsumerLimits


class Space:
    """What is left of the limits, and how many records fit into it, were they as large as those before."""

    def __init__(self, lanes: Lanes, limits: ConsumerLimits) -> None:
        self._lanes = lanes
        self._limits = limits
        # At first as large as Kafka takes them.
        self._usual_size = 1024.0 * 1024.0

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be fetched."""
        return self._lanes.events >= self._limits.events or self._lanes.bytes >= self._limits.bytes

    def records(self, most: int) -> int:
        """How many records may be fetched at once: one at least, as nobody knows how large the next one is."""
        room = int((self._limits.bytes - self._lanes.bytes) / max(1.0, self._usual_size))
        return max(1, min(most, self._limits.events - self._lanes.events, room))

    def note(self, items: Sequence[Item]) -> None:
        """Notes how large the records were that came."""
        if items:
            self._usual_size = (self._usual_size + sum(item.size for item in items) / len(items)) / 2
