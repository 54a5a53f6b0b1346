"""Effects as values: what is planned, what a worker holds, what became of an attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid5

# Never change it: the ids of effects already performed come from it.
_EFFECTS = UUID("6f0b1b7e-0a3c-5d0e-9a51-5a9d3e6f2c41")

State = Literal["planned", "intent", "unknown", "done", "failed"]
Outcome = Literal["done", "failed", "unknown", "not_sent"]


def effect_id(sink: str, case_id: UUID, purpose: str, occurrence: str) -> UUID:
    """Return the id of an intended act: the same intent gives the same id, however often its event is read."""
    return uuid5(_EFFECTS, f"{sink}|{case_id}|{purpose}|{occurrence}")


def bound_payload(identity: UUID) -> bytes:
    """What an effect's sealed payload is bound to, so that it opens in no other place."""
    return b"effect.payload:" + identity.bytes


def bound_request(identity: UUID) -> bytes:
    """What an effect's sealed request is bound to, so that it opens in no other place."""
    return b"effect.request:" + identity.bytes


@dataclass(frozen=True, slots=True)
class PlannedEffect:
    """An act that a flow wants, with all its sink needs. `payload` holds personal data: it is stored sealed."""

    effect_id: UUID
    sink: str
    purpose: str
    occurrence: str
    payload: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"PlannedEffect({self.effect_id}, {self.sink}, {self.purpose}, {self.occurrence})"


@dataclass(frozen=True, slots=True)
class HeldEffect:
    """An effect this worker has claimed. `attempt` fences: whoever begins a later one makes this one stale.

    `adopted`: the worker before let go of it by dying or by being paused, not by its own will. `doubted`: an attempt at
    it may have happened. `key_left_s`: how long its provider still knows its key; None before the key's first use.
    """

    effect_id: UUID
    sink: str
    case_id: UUID
    case_version: int
    purpose: str
    state: State
    payload: bytes
    request: bytes | None
    request_sha256: bytes | None
    attempt: int
    adopted: bool
    correlation_id: str
    created_at: datetime
    doubted: bool = False
    key_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last attempt at an effect, as an adopter finds it."""

    number: int
    phase: Literal["sending", "committing"]
    outcome: Outcome | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an attempt. `detail` is the provider's reference when done, else the reason; never personal."""

    outcome: Outcome
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class UnknownEffect:
    """An effect of which nobody knows whether it happened: shown to people, never repeated by itself."""

    effect_id: UUID
    case_id: UUID
    sink: str
    purpose: str
    attempt: int
    reason: str | None
    correlation_id: str
    since: datetime
