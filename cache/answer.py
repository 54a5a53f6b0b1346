"""What a lookup answers, and how new the answer is."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["found", "not_found", "cannot_tell"]
Source = Literal["hit", "miss", "stale", "bypass"]

_TOKEN = re.compile(r"([a-z][a-z0-9_]{0,62}):([0-9A-Za-z-]{1,64}):([0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class AsOf:
    """A position of a silo: the answer that carries it misses no change at or below it.

    `time` is a moment at which that position was known to be the newest one.
    """

    silo: str
    epoch: str
    seq: int
    time: dt.datetime | None = None

    @property
    def token(self) -> str:
        """What a client sends back to be answered at least as new as this."""
        return f"{self.silo}:{self.epoch}:{self.seq}"

    @classmethod
    def parse(cls, token: str) -> AsOf:
        """Read a token; raises ValueError."""
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise ValueError("is not a token that this gateway gave out")
        return cls(found[1], found[2], int(found[3]))

    def met_by(self, epoch: str, seq: int) -> bool:
        """Whether that position has everything this one has; positions of two epochs cannot be compared."""
        return epoch == self.epoch and seq >= self.seq


@dataclass(slots=True)
class Answer:
    """`results` is a JSON array as the silo made it. `reason` says why the verdict is `cannot_tell`.

    Nobody changes one; it is not frozen because one is made per request, and freezing it is most of that.

    `age_s` is how old the answer may be at most. `staleness_bound_ms` is the same where it is measured at the silo's
    primary, and None where only the replica's own word is known.
    """

    verdict: Verdict
    results: bytes = field(repr=False)
    as_of: AsOf
    etag: str
    age_s: float
    staleness_bound_ms: int | None
    source: Source
    reason: str | None = None
