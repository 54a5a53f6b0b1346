"""What the silo answered a moment ago, for those whose look into Redis could not show it yet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.loaded import Loaded

# Longer than a fill is on its way. Whoever misses after that misses for another reason.
KEPT_S = 0.1
_MOST, _MOST_BYTES = 1_000, 4 << 20


class Landed:
    """Answers that landed not more than KEPT_S ago, nor all of those: by digest, and a bounded number of them.

    Between the landing of an answer and the end of its FILL, a look into Redis finds nothing: each who comes in between
    would ask the silo again. They are held in two generations of half that time, so that to forget one costs nothing.
    """

    def __init__(self) -> None:
        self._young: dict[str, Loaded] = {}
        self._old: dict[str, Loaded] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def put(self, digest: str, loaded: Loaded) -> None:
        """Within the event loop."""
        size = len(loaded.body)
        if len(self._young) >= _MOST // 2 or self._bytes + size > _MOST_BYTES // 2:
            self._turn()
            if size > _MOST_BYTES // 2:
                # the one before it, if there is one, is older than what is known now
                self._old.pop(digest, None)
                return
        self._young[digest] = loaded
        self._bytes += size
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_S / 2, self._tick)

    def get(self, digest: str, epoch: str, newest: float) -> Loaded | None:
        """The answer for a caller that has read in Redis, under the epoch's mark, that `newest` touched it last.

        This is the rule of a validated read, applied to an answer in hand: a snapshot of the same epoch whose seq is
        at least the score of every tag misses no change that the caller's look could know of, so an entry made of it
        would have counted. It goes out with its own position, as it does to those who waited for it, and not with that
        of the look: the promise about its as-of holds by itself, even where the replica lags by more than the tags
        reach back (FILL has the floor for that). A look that knows of a newer change, or of another epoch, gets none.
        """
        found = self._young.get(digest) or self._old.get(digest)
        if found is None:
            return None
        position = found.position
        return found if position.epoch == epoch and position.seq >= newest else None

    def _turn(self) -> None:
        self._young, self._old, self._bytes = {}, self._young, 0

    def _tick(self) -> None:
        """A personal answer stays in memory no longer than it is of use, whether or not others come."""
        self._turn()
        self._timer = asyncio.get_running_loop().call_later(KEPT_S / 2, self._tick) if len(self) else None
