"""What performs effects. A sink renders an order once, and performs the stored bytes as often as the ledger asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

CommitPoint = Callable[[], Awaitable[None]]


class SinkClass(StrEnum):
    """What a sink's provider offers against doing something twice. Declared by each sink, and tested.

    It says what follows an act that may have happened: see streams.effects.resolution.
    """

    KEYED = "keyed"  # the same bytes with the same idempotency key act once
    SEARCHABLE = "searchable"  # the provider can be asked for our reference
    NATURAL = "natural"  # doing it again changes nothing
    NONE = "none"  # only a person can find out


class SendError(Exception):
    """An act that did not end well. `reason` is shown to operators: a code, never a personal value."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotSent(SendError):
    """The act surely did not happen. `permanent`: it never will with these bytes; else try again, in `retry_after`."""

    def __init__(self, reason: str, *, retry_after: float | None = None, permanent: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.permanent = permanent


class Ambiguous(SendError):
    """The act may have happened: the provider's answer was lost, or makes no sense."""


class LeaseLost(Exception):
    """Another worker has the effect now: stop before the act. A sink lets it pass."""


@dataclass(frozen=True, slots=True)
class Order:
    """One effect as a sink renders it. `payload` holds personal data and is what the flow planned."""

    effect_id: UUID
    case_id: UUID
    purpose: str
    payload: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Order({self.effect_id}, {self.purpose})"


@dataclass(frozen=True, slots=True)
class Found:
    """The act happened: the provider's reference, without personal data."""

    reference: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider knows nothing of the act, as far as it can see now."""


@dataclass(frozen=True, slots=True)
class CannotTell:
    """The provider gave no answer that means anything. `reason` is a code, never a personal value."""

    reason: str


Answer = Found | NotFound | CannotTell


class Sink(Protocol):
    """One kind of act on the outside world."""

    @property
    def name(self) -> str:
        """The name that flows use."""
        ...

    @property
    def sink_class(self) -> SinkClass:
        """What the provider offers against doing something twice."""
        ...

    @property
    def timeout_s(self) -> float:
        """The longest that one `perform` may take."""
        ...

    def render(self, order: Order) -> bytes:
        """Return the bytes to be stored and performed. Pure: no network, no clock. Raises NotSent when it cannot."""
        ...

    async def perform(self, request: bytes, *, commit_point: CommitPoint) -> str:
        """Perform the act and return the provider's reference, without personal data.

        Awaits `commit_point` once, just before the step that cannot be taken back, and lets what it raises pass.
        Raises NotSent when the act surely did not happen and Ambiguous when it may have.
        """
        ...


@runtime_checkable
class Searches(Protocol):
    """A sink whose provider can be asked whether an act happened."""

    @property
    def settle_lag_s(self) -> float:
        """How long after an act the provider may still not show it: before that, NotFound means nothing."""
        ...

    async def find(self, effect_id: UUID, request: bytes) -> Answer:
        """Ask for the act that these bytes stand for. Changes nothing there, and ends within a deadline of its own."""
        ...


@runtime_checkable
class Keyed(Sink, Protocol):
    """A sink whose provider acts once for one idempotency key."""

    @property
    def key_life_s(self) -> float:
        """How long after its first use the provider knows a key at least."""
        ...

    async def perform(self, request: bytes, *, commit_point: CommitPoint, key: str | None = None) -> str:
        """Perform the act as `Sink.perform` does, under this key: the ledger gives an effect always the same."""
        ...
