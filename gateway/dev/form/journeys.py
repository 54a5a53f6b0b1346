"""What one resident has answered so far. It stays on the server: the browser holds a random cookie and nothing else."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

# The order of the pages; `photo` may be answered with nothing.
STEPS = ("find", "toilet", "problem", "describe", "photo", "contact")
LIFETIME_S = 3600.0


@dataclass(frozen=True, slots=True)
class Photo:
    content: bytes
    media_type: str
    name: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The report as the gateway took it; `photo` is what became of the photo: none, added or refused."""

    token: str
    reference: str
    photo: str


@dataclass
class Journey:
    """One report in the making. `correlation_id` goes with every request made for it."""

    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    correlation_id: str = field(default_factory=lambda: str(uuid4()))
    done: set[str] = field(default_factory=set)
    answers: dict[str, str] = field(default_factory=dict)
    address: dict[str, Any] | None = None
    toilet: dict[str, Any] | None = None
    photo: Photo | None = None
    notice: str = ""
    sent: Sent | None = None

    def next_step(self, after: str) -> str:
        """The first page after `after` without an answer, or `check` when there is none."""
        rest = STEPS[STEPS.index(after) + 1 :] if after in STEPS else STEPS
        return next((step for step in (*rest, *STEPS) if step not in self.done), "check")

    def missing_before(self, step: str) -> str | None:
        """The page that must be answered before `step` makes sense."""
        before = STEPS[: STEPS.index(step)] if step in STEPS else STEPS
        return next((earlier for earlier in before if earlier not in self.done), None)

    def take_notice(self) -> str:
        """What the next page must say once."""
        notice, self.notice = self.notice, ""
        return notice


class Journeys:
    """The journeys under way: bounded in number, in time and in bytes of photos; the longest untouched go first."""

    def __init__(
        self,
        *,
        limit: int = 1000,
        photo_bytes: int = 128 * 1024**2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._photo_bytes = photo_bytes
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Journey]] = OrderedDict()

    def find(self, key: str | None) -> Journey | None:
        """The journey of a cookie; None when it is unknown or too old."""
        self._forget_old()
        if key is None or key not in self._kept:
            return None
        _, journey = self._kept.pop(key)
        self._kept[key] = (self._clock(), journey)
        return journey

    def begin(self) -> tuple[str, Journey]:
        """A new journey and the cookie that leads back to it."""
        self._forget_old()
        while len(self._kept) >= self._limit:
            self._kept.popitem(last=False)
        key, journey = secrets.token_urlsafe(32), Journey()
        self._kept[key] = (self._clock(), journey)
        return key, journey

    def begin_again(self, key: str) -> Journey:
        """Forgets the answers of a journey, so that the same browser can send another report."""
        self._kept.pop(key, None)
        self._kept[key] = (self._clock(), journey := Journey())
        return journey

    def room_for(self, photo: Photo) -> bool:
        """Whether one more photo may be held."""
        held = sum(len(journey.photo.content) for _, journey in self._kept.values() if journey.photo)
        return held + len(photo.content) <= self._photo_bytes

    def _forget_old(self) -> None:
        oldest = self._clock() - LIFETIME_S
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._kept.popitem(last=False)
