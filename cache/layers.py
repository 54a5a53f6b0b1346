"""What may still answer from before a change: Redis, this process's L1, and whole answers; each can be asked."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from cache.feed import L1
from cache.group import Group
from cache.loader import Question
from cache.server import Server
from cache.silo import Silo
from cache.state import Position, State
from cache.store import Store

_TIMEOUT_S = 1.0
_TOUCHED_SQL = "select exists (select from change_log where seq > $1 and seq <= $2 and tags && $3::text[]) as touched"

Found = Literal["current", "behind", "violation", "unknown"]


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the change log that was seen at the primary; `seen_ms` is Redis's clock after that."""

    epoch: str
    seq: int
    tags: tuple[str, ...]
    seen_ms: int
    seen_at: float


class Layer(Protocol):
    """Something that answers, and that ought to have a change by now."""

    name: str

    async def has(self, change: Change) -> Found:
        """`current` if it has the change, `behind` if it says itself that it may not, `violation` if it hides that."""
        ...


class L1Layer:
    """The answers that this process keeps in memory."""

    name = "l1"

    def __init__(self, l1: L1) -> None:
        self._l1 = l1

    async def has(self, change: Change) -> Found:
        """Compare what is held under the change's tags with the position that L1 says it is at."""
        at = self._l1.position
        if at is None or at.epoch != change.epoch:
            return "unknown"
        if at.seq < change.seq:
            return "behind"
        return "violation" if self._l1.holds_older(change.tags, change.seq) else "current"


class AnswerLayer:
    """Whole answers, as a resident gets them, against the silo's primary: finds a lookup whose tags are too few, too.

    Only questions that nobody's personal data stands in: those leave an audit row each and are asked only for a person.
    """

    name = "answer"

    def __init__(self, silo: Silo, groups: Iterable[Group], primary: Server) -> None:
        self._silo = silo
        self._groups = [group for group in groups if not group.definition.personal]
        self._primary = primary
        # Which question is asked again is no secret.
        self._chance = random.Random()  # noqa: S311 - said above

    async def has(self, change: Change) -> Found:
        """Ask one question again that was asked lately, one that the change touches if there is any."""
        asked = [(group, question) for group in self._groups for question in group.recent]
        if not asked:
            return "unknown"
        touched = [one for one in asked if not set(change.tags).isdisjoint(one[1].tags)]
        group, question = self._chance.choice(touched or asked)
        return await self._compare(group, question, change)

    async def _compare(self, group: Group, question: Question, change: Change) -> Found:
        parameters = dict(zip(group.definition.parameters, question.values, strict=True))
        answer = await group.answer(parameters, timeout_s=_TIMEOUT_S)
        if answer.as_of.epoch != change.epoch:
            return "unknown"
        if answer.as_of.seq < change.seq:
            return "behind"
        truth = await self._silo.loader.load(group, question, primary=True)
        if truth.body == answer.results:
            return "current"
        if truth.position.epoch != answer.as_of.epoch:
            return "unknown"  # positions of two epochs cannot be compared
        return "unknown" if await self._touched(answer.as_of.seq, truth.position, question) else "violation"

    async def _touched(self, seq: int, now: Position, question: Question) -> bool:
        """Whether the log says that the answer had to change between the two looks."""
        rows = await self._primary.fetch(_TOUCHED_SQL, (seq, now.seq, list(question.tags)), timeout_s=_TIMEOUT_S)
        return bool(rows[0]["touched"])


class RedisLayer:
    """The tags and the state that every reader in every process relies on."""

    name = "redis"

    def __init__(self, store: Store) -> None:
        self._store = store

    async def has(self, change: Change) -> Found:
        """Ask for the state first and for the tags' scores after it, as a reader does."""
        raw, _ = await self._store.look()
        state = State.parse(raw)
        if state is None or state.epoch != change.epoch:
            return "unknown"
        if state.seq < change.seq:
            # Behind is honest, unless the state claims to have been the newest one after the change was there.
            return "violation" if state.time_ms > change.seen_ms else "behind"
        for tag in change.tags:
            reading = await self._store.read("sentinel", (tag,))
            if reading is None or reading.state is None or reading.state.epoch != change.epoch or not reading.guarded:
                return "unknown"  # without the epoch's mark no reader takes any entry
            if reading.newest < change.seq:
                return "violation"  # an entry from before the change would still count
        return "current"
