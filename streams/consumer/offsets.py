"""Which records of a partition are settled, and how far that may be told to Kafka: only without gaps."""

from collections import deque
from uuid import UUID

Mark = UUID | bytes | None


class Watermark:
    """The settled records of one partition since it was assigned.

    Records are delivered in ascending order and settled in any order. Offsets that are never delivered (transaction
    markers, removed records) hold nothing up: only what was delivered counts.
    """

    def __init__(self) -> None:
        self._unsettled: deque[tuple[int, float]] = deque()
        self._ahead: dict[int, Mark] = {}
        self._highest: int | None = None
        self._last: tuple[int, Mark] | None = None

    def deliver(self, offset: int, at: float) -> bool:
        """Notes a record handed over at the time `at`; False if this or a later one was delivered before."""
        if self._highest is not None and offset <= self._highest:
            return False
        self._highest = offset
        self._unsettled.append((offset, at))
        return True

    def settle(self, offset: int, mark: Mark = None) -> None:
        """Notes that a delivered record needs nothing more. To settle one twice changes nothing.

        `mark` tells the record from another at its offset; it is kept no longer than it may become `last`.
        """
        if not self._unsettled or offset < self._unsettled[0][0]:
            return
        self._ahead[offset] = mark
        while self._unsettled and self._unsettled[0][0] in self._ahead:
            first = self._unsettled.popleft()[0]
            self._last = (first, self._ahead.pop(first))

    @property
    def committable(self) -> int | None:
        """The offset to commit: that of the first record that still needs something; None before the first record."""
        if self._unsettled:
            return self._unsettled[0][0]
        return None if self._highest is None else self._highest + 1

    @property
    def highest(self) -> int | None:
        """The newest offset that was delivered."""
        return self._highest

    @property
    def last(self) -> tuple[int, Mark] | None:
        """Offset and mark of the last record before `committable`; None while none is settled."""
        return self._last

    @property
    def oldest_at(self) -> float | None:
        """When the oldest unsettled record was delivered."""
        return self._unsettled[0][1] if self._unsettled else None

    @property
    def held(self) -> int:
        """How many records stand between the watermark and the newest one, settled ahead of it or not."""
        return len(self._unsettled)

    @property
    def ahead(self) -> int:
        """How many of them are settled and cannot be told: the oldest one is in their way."""
        return len(self._ahead)
