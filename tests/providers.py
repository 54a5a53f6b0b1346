"""Providers of each class, in memory, and the sinks that speak to them. `acts` is what really happened out there.

What a test wants to go wrong is named by `trouble`, one word a call: `lost` acts and loses the answer, `hangs` acts
and never answers, `refused` answers no for good, `later` answers try again, `busy` (keyed) says that the first call
with this key is still under way. No word left: all goes well.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from streams.sinks import Ambiguous, Answer, CannotTell, CommitPoint, Found, NotFound, NotSent, Order, SinkClass


class Provider:
    """What all of them share: the acts, the calls, and the trouble to come."""

    name = "email"
    sink_class = SinkClass.NONE
    timeout_s = 20.0

    def __init__(self, *trouble: str) -> None:
        self.trouble = list(trouble)
        self.acts: list[bytes] = []
        self.calls: list[bytes] = []
        self.rendered = 0

    def render(self, order: Order) -> bytes:
        self.rendered += 1
        return f"{order.effect_id} {order.payload['to']} {self.rendered}".encode()

    async def perform(self, request: bytes, *, commit_point: CommitPoint) -> str:
        return await self._call(request, commit_point, lambda: self._act(request))

    async def _call(self, request: bytes, commit_point: CommitPoint, act: Callable[[], str]) -> str:
        self.calls.append(request)
        word = self.trouble.pop(0) if self.trouble else ""
        if word == "refused":
            raise NotSent("http:400", permanent=True)
        if word == "later":
            raise NotSent("http:503", retry_after=0.01)
        await commit_point()
        if word == "busy":
            raise NotSent("http:409", retry_after=0.01)
        if word == "vanished":
            raise Ambiguous("http:timeout")
        reference = act()
        if word == "lost":
            raise Ambiguous("http:reset")
        if word == "hangs":
            await asyncio.Event().wait()
        return reference

    def _act(self, request: bytes) -> str:
        self.acts.append(request)
        return f"ref-{len(self.acts)}"


class NoneSink(Provider):
    """Acts at each call, and can be asked nothing."""


class NaturalSink(Provider):
    """Puts what it is given in one place: the second time changes nothing."""

    sink_class = SinkClass.NATURAL

    def __init__(self, *trouble: str) -> None:
        super().__init__(*trouble)
        self.there: dict[bytes, str] = {}

    async def perform(self, request: bytes, *, commit_point: CommitPoint) -> str:
        return await self._call(request, commit_point, lambda: self._put(request))

    def _put(self, request: bytes) -> str:
        if request not in self.there:
            self.there[request] = self._act(request)
        return self.there[request]


class KeyedSink(Provider):
    """Acts once for a key, and forgets it after `forgets_s`. Another payload under the key is refused."""

    sink_class = SinkClass.KEYED

    def __init__(self, *trouble: str, key_life_s: float = 3600.0, forgets_s: float | None = None) -> None:
        super().__init__(*trouble)
        self.key_life_s = key_life_s
        self.keys: list[str | None] = []
        self._forgets_s = key_life_s if forgets_s is None else forgets_s
        self._known: dict[str, tuple[bytes, str, float]] = {}

    async def perform(self, request: bytes, *, commit_point: CommitPoint, key: str | None = None) -> str:
        self.keys.append(key)
        return await self._call(request, commit_point, lambda: self._once(request, key or ""))

    def _once(self, request: bytes, key: str) -> str:
        digest = hashlib.sha256(request).digest()
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[2] < self._forgets_s:
            if known[0] != digest:
                raise NotSent("http:422", permanent=True)
            return known[1]
        self._known[key] = (digest, self._act(request), time.monotonic())
        return self._known[key][1]


class Search:
    """A search by our reference that shows an act only after a while. `answers`: what it says before it tells."""

    settle_lag_s = 0.1

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    def look(self, effect_id: UUID, acts: Sequence[bytes]) -> Answer:
        self.asked += 1
        word = self.answers.pop(0) if self.answers else ""
        if word == "nothing":
            return NotFound()
        if word == "down":
            return CannotTell("http:503")
        if word == "broken":
            raise KeyError(str(effect_id))
        found = [n for n, act in enumerate(acts, 1) if act.startswith(str(effect_id).encode())]
        return Found(f"ref-{found[0]}") if found else NotFound()


class SearchableSink(NoneSink):
    """Acts at each call, and can be asked for our reference."""

    sink_class = SinkClass.SEARCHABLE
    settle_lag_s = Search.settle_lag_s

    def __init__(self, *trouble: str, search: Search | None = None) -> None:
        super().__init__(*trouble)
        self.search = search or Search()

    async def find(self, effect_id: UUID, request: bytes) -> Answer:
        assert request.startswith(str(effect_id).encode())
        return self.search.look(effect_id, self.acts)


class KeyedSearchableSink(KeyedSink):
    """Acts once for a key, and can be asked when the key has expired."""

    settle_lag_s = Search.settle_lag_s

    def __init__(self, *trouble: str, key_life_s: float = 3600.0, search: Search | None = None) -> None:
        super().__init__(*trouble, key_life_s=key_life_s)
        self.search = search or Search()

    async def find(self, effect_id: UUID, request: bytes) -> Answer:
        assert request.startswith(str(effect_id).encode())
        return self.search.look(effect_id, self.acts)
