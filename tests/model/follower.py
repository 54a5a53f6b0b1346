"""The real invalidator, stopped at every question it asks."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from cache import coherence
from cache.coherence import Invalidator
from cache.metrics import CacheMetrics
from cache.state import Position
from tests.model.world import Replies


class Question(NamedTuple):
    """What an invalidator asks of Redis or of the primary: look, tip, mint, apply, epoch or beat."""

    kind: str
    words: tuple[Any, ...] = ()


class TipRow(NamedTuple):
    """The row that the statement for the tip gives; `rows` is of (seq, id, tags)."""

    server: str
    epoch: str
    seq: int
    id: str
    definition: str
    id_there: str | None
    rows: tuple[tuple[int, str, tuple[str, ...]], ...]


class _Asked:
    """Awaiting it hands the question out of the coroutine, and the reply in."""

    def __init__(self, kind: str, *words: object) -> None:
        self._question = Question(kind, words)

    def __await__(self) -> Generator[Question, Any, Any]:
        return (yield self._question)


class _Store:
    """The part of `Store` that an invalidator uses."""

    async def look(self) -> Any:
        return await _Asked("look")

    async def apply(self, expected: Position, seq: int, name: str, tags: list[str]) -> Any:
        return await _Asked("apply", expected.expected, seq, name, tuple(tags))

    async def begin_epoch(self, expected: bytes, position: Position, server: str, time_ms: int) -> Any:
        return await _Asked("epoch", expected, position, server, time_ms)

    async def beat(self, expected: Position, time_ms: int) -> Any:
        return await _Asked("beat", expected.expected, time_ms)


class _Primary:
    """The part of a connection that it uses."""

    async def fetchrow(self, sql: str, *arguments: Any, timeout: float) -> Any:
        if sql == coherence._MINT_SQL:
            # Which random epoch it would take is of no interest; the row says which one it became.
            row = await _Asked("mint", arguments[1])
            return None if row is None else row._asdict()
        row = await _Asked("tip", arguments[0])
        return {**row._asdict(), "rows": json.dumps(row.rows)}


class Follower(Invalidator):
    """An invalidator whose questions go nowhere."""

    async def _connected(self) -> Any:
        return _Primary()


class Followers:
    """Answers what an invalidator asks next, from the replies of its step alone: nothing else is kept between steps.

    `beats` is False where time stands still, and a beat would change nothing.
    """

    def __init__(self, kind: type[Follower] = Follower, *, beats: bool) -> None:
        self._kind = kind
        self._metrics = CacheMetrics(CollectorRegistry())
        self._time = 0.0 if beats else -1.0
        self._known: dict[Replies, Question | None] = {}
        self._epochs: dict[Replies, frozenset[str]] = {}

    def next(self, replies: Replies) -> Question | None:
        """The question that follows these replies; None when the step is over."""
        if replies not in self._known:
            self._known[replies] = self._asked(replies)
        return self._known[replies]

    def epochs(self, replies: Replies) -> frozenset[str]:
        """The epochs that it was told of in this step."""
        if replies not in self._epochs:
            rows = {reply.epoch for reply in replies if isinstance(reply, TipRow)}
            states = {
                reply[0].split(b" ")[0].decode() for reply in replies[:1] if isinstance(reply, tuple) and reply[0]
            }
            self._epochs[replies] = frozenset(rows | states)
        return self._epochs[replies]

    def _asked(self, replies: Replies) -> Question | None:
        store: Any = _Store()
        follower = self._kind("town", "", store, self._metrics, clock=lambda: self._time)
        step = follower.step()
        try:
            question: Any = step.send(None)
            for reply in replies:
                question = step.send(reply)
        except StopIteration:
            return None
        finally:
            step.close()
        assert isinstance(question, Question), "it waits for something that the model does not know of"
        return question
