"""What is known of a partition while it is assigned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from streams.consumer.limits import ConsumerLimits
from streams.consumer.offsets import Watermark
from streams.consumer.position import Position, sha256_of

_NEARLY = 0.8


@dataclass(slots=True)
class Assigned:
    """How far a partition is settled, what of that is noted in the gateway's database, and what Kafka was told."""

    watermark: Watermark = field(default_factory=Watermark)
    start: int | None = None
    noted: Position | None = None
    told: int | None = None

    @property
    def position(self) -> Position | None:
        """How far it is settled; None while nothing is."""
        offset, last = self.watermark.committable, self.watermark.last
        return Position(offset, last[0], sha256_of(last[1])) if offset is not None and last is not None else None

    @property
    def to_tell(self) -> int | None:
        """The offset that Kafka has to know: where it began, until the position has moved."""
        return self.start if self.noted is None else self.noted.next_offset

    @property
    def settled_to(self) -> int | None:
        """The offset of the first record that still needs something; None before the partition is opened."""
        offset = self.watermark.committable
        return self.start if offset is None else offset

    @property
    def fetched_to(self) -> int | None:
        """The offset after the newest record that came; None before the partition is opened."""
        highest = self.watermark.highest
        return self.start if highest is None else highest + 1


def blocked(partitions: Mapping[int, Assigned], limits: ConsumerLimits) -> dict[int, int]:
    """The partitions nearly full of settled records because the oldest one is not, and the offset of that one."""
    enough = limits.partition_events * _NEARLY
    return {
        number: offset
        for number, each in partitions.items()
        if each.watermark.ahead >= enough and (offset := each.watermark.committable) is not None
    }
