"""What the silo answered a moment ago, for those whose look into Redis could not show it yet."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.loader import Loaded

# Longer than a fill is on its way. Whoever misses after that misses for another reason.
KEPT_S = 0.1
_MOST, _MOST_BYTES = 1_000, 4 << 20


class Landed:
    """Answers that have landed within KEPT_S, by digest; the oldest go first where there are too many.

    Between the landing of an answer and the end of its FILL, a look into Redis finds nothing: each who comes in between
    would ask the silo again.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: OrderedDict[str, tuple[Loaded, float]] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, digest: str, loaded: Loaded) -> None:
        """Within the event loop."""
        self._drop(digest)
        self._answers[digest] = loaded, self._clock() + KEPT_S
        self._bytes += len(loaded.body)
        while len(self._answers) > _MOST or self._bytes > _MOST_BYTES:
            self._drop(next(iter(self._answers)))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_S, self._trim)

    def get(self, digest: str, epoch: str, newest: float) -> Loaded | None:
        """The answer for a caller that has read in Redis, under the epoch's mark, that `newest` touched it last.

        This is the rule of a validated read, applied to an answer in hand: a snapshot of the same epoch whose seq is
        at least the score of every tag misses no change that the caller's look could know of, so an entry made of it
        would have counted. It goes out with its own position, as it does to those who waited for it, and not with that
        of the look: the promise about its as-of holds by itself, even where the replica lags by more than the tags
        reach back (FILL has the floor for that). A look that knows of a newer change, or of another epoch, gets none.
        """
        found = self._answers.get(digest)
        if found is None or self._clock() >= found[1]:
            return None
        position = found[0].position
        return found[0] if position.epoch == epoch and position.seq >= newest else None

    def _drop(self, digest: str) -> None:
        found = self._answers.pop(digest, None)
        if found is not None:
            self._bytes -= len(found[0].body)

    def _trim(self) -> None:
        """A personal answer stays in memory no longer than it is of use, whether or not others come."""
        self._timer = None
        now = self._clock()
        while self._answers:
            digest, (_, until) = next(iter(self._answers.items()))
            if now < until:
                self._timer = asyncio.get_running_loop().call_later(until - now, self._trim)
                return
            self._drop(digest)
