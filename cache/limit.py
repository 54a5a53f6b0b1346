"""How much is asked of a silo, and how much of what it does not know is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

# Below this, batches of two sizes or two moments differ for many reasons that are not a queue.
_QUICK_S = 0.005
_NEAR, _FAR = 2.0, 3.0
_SHRINK_MOST, _HALVE = 0.7, 0.5
_RELEARN = 0.1
_KINDS = 2_000


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch on its way: when it began, and how many were there then, itself among them."""

    at: float
    beside: int


class ConcurrencyLimit:
    """How many batches a silo is asked at a time: between 1 and `most`, found from how long they take.

    Each kind of batch (a lookup, and the size to a power of two) has a usual time: the shortest it has taken, which is
    learnt anew only from batches that were alone, as those waited for no other. A batch within twice its usual time
    lets the limit grow by 1/limit, if at least half of it was in use; beyond three times, a queue has formed at the
    server, and the limit shrinks towards three times usual/time, at most by 30 %; a batch that no server answered
    halves it. In between it stays. One congestion counts once: a batch that began before the last shrinking does not
    shrink it again.

    After Netflix's concurrency-limits (the gradient of Gradient2Limit, the no-load time of VegasLimit;
    https://github.com/Netflix/concurrency-limits) and, for the one decrease a round, TCP (RFC 5681, section 3.1). Its
    additive queue allowance is left out: at limits below ten it outweighs the gradient.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.in_flight = 0
        self._most = most
        self._clock = clock
        self._limit = (most + 1) / 2
        self._usual: dict[Hashable, float] = {}
        self._shrunk_at = -1.0

    @property
    def value(self) -> int:
        return int(self._limit)

    def begin(self) -> Begun:
        """A batch is sent; `end` it, whatever becomes of it."""
        self.in_flight += 1
        return Begun(self._clock(), self.in_flight)

    def leave(self) -> None:
        """A batch has ended in a way that says nothing of the silo's health."""
        self.in_flight -= 1

    def end(self, begun: Begun, kind: Hashable, *, failed: bool) -> None:
        """A batch was answered, however long that took, or `failed`: no server answered it."""
        self.in_flight -= 1
        if failed:
            self._shrink(begun, _HALVE)
            return
        seconds = max(self._clock() - begun.at, _QUICK_S)
        usual = self._usual_of(kind, seconds, alone=begun.beside == 1)
        if seconds > _FAR * usual:
            self._shrink(begun, max(_SHRINK_MOST, _FAR * usual / seconds))
        elif seconds <= _NEAR * usual and begun.beside * 2 >= self._limit:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)

    def _shrink(self, begun: Begun, factor: float) -> None:
        if begun.at >= self._shrunk_at:
            self._limit = max(1.0, self._limit * factor)
            self._shrunk_at = self._clock()

    def _usual_of(self, kind: Hashable, seconds: float, *, alone: bool) -> float:
        """The usual time of the kind, as it was before this batch or as this one shows it to be."""
        if len(self._usual) >= _KINDS and kind not in self._usual:
            self._usual.clear()
        usual = self._usual.setdefault(kind, seconds)
        if seconds < usual:
            self._usual[kind] = usual = seconds
        elif alone:
            self._usual[kind] = usual + _RELEARN * (seconds - usual)
        return usual


class NegativeCap:
    """How many answers of *there is none* are kept a second, with room for `burst` at once.

    Who asks for keys that do not exist, one after the other, would fill Redis with them; each is answered all the same.
    """

    def __init__(self, per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._clock = clock
        self._left = float(burst)
        self._at = clock()

    def allow(self) -> bool:
        """Whether one more may be kept; if so it is taken from what is left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class HedgeBudget:
    """Which share of batches may be sent to a second server: to ask twice is no help to a silo short of time."""

    def __init__(self, share: float = 0.05, burst: int = 5) -> None:
        self._share = share
        self._burst = float(burst)
        self._left = float(burst)

    def earn(self) -> None:
        """A batch is sent that might be sent twice."""
        self._left = min(self._burst, self._left + self._share)

    def spend(self) -> bool:
        """Whether it may be; if so that is taken from what is left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
