"""Redis's clock, as this process reckons it: lives and ages are by that one, which all processes have in common."""

from __future__ import annotations

import time
from collections.abc import Callable


class RedisClock:
    """Set by every reply that says what time it is there. `clock` is this process's own, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.own = clock
        self._ahead_ms: float | None = None

    def set(self, sent: float, seconds: int, micros: int) -> None:
        """`sent` is the own time from before the question left: so what is reckoned is never behind Redis's clock."""
        self._ahead_ms = seconds * 1000 + micros / 1000 - sent * 1000

    def now_ms(self) -> float | None:
        """Milliseconds since 1970, or None before the first reply; never behind it by more than a failover's
        difference.
        """
        return None if self._ahead_ms is None else self.own() * 1000 + self._ahead_ms
