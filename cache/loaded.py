"""What a silo has answered, and where it stood then."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache.gathered import spread
from cache.state import Position


@dataclass(slots=True)
class Loaded:
    """An answer out of the silo, with the position of the snapshot that it was read in.

    The snapshot was taken after `sent`, which is by this process's own clock, `time.monotonic`; `now` is Postgres's.

    Nobody changes one, but for `etag`: whoever needs it first makes it. It is not frozen because one is made for every
    question, and freezing it is most of that.
    """

    body: bytes = field(repr=False)
    position: Position
    applied_at: dt.datetime
    now: dt.datetime
    from_primary: bool
    sent: float
    etag: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """An answer a question, in their order, each with the number of its rows. The oldest snapshot comes first."""

    answers: Sequence[tuple[Loaded, int]]

    @classmethod
    def gathered(cls, row: Mapping[str, Any], *, from_primary: bool, sent: float) -> Batch:
        """Of one statement for all questions, so of one snapshot."""
        at = (Position.of(row), row["applied_at"], row["now"], from_primary, sent)
        return cls([(Loaded(body, *at), n) for body, n in spread(row)])

    @classmethod
    def one_by_one(cls, rows: Sequence[Mapping[str, Any]], *, from_primary: bool, sent: float) -> Batch:
        """Of one statement a question, each with a snapshot of its own."""
        return cls(
            [
                (Loaded(row["body"], Position.of(row), row["applied_at"], row["now"], from_primary, sent), row["n"])
                for row in rows
            ]
        )

    @property
    def oldest(self) -> Position:
        return self.answers[0][0].position

    @property
    def newest(self) -> Position:
        return self.answers[-1][0].position

    @property
    def from_primary(self) -> bool:
        return self.answers[0][0].from_primary
