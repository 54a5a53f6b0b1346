"""What Redis knows of a silo, in one line: the position up to which changes have been brought to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_UNFIT = re.compile(r"[^!-~]")


def word(text: str) -> str:
    """The text as one word of the line; an empty one, as a silo has before its first load, is a hyphen."""
    return _UNFIT.sub("_", text)[:200] or "-"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a silo's change log. `id` and `definition` tell it from the same number in another life."""

    epoch: str
    seq: int
    id: str
    definition: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Position:
        """The position in a row of `progress`."""
        return cls(word(row["epoch"]), row["seq"], word(row["id"]), word(row["definition"]))

    @property
    def expected(self) -> bytes:
        """What the line of a state at this position begins with."""
        return f"{self.epoch} {self.seq} {self.id} ".encode()


@dataclass(frozen=True, slots=True)
class State:
    """The line: a position, the identity of the primary it was read from, and when it was the newest one there."""

    position: Position
    server: str
    time_ms: int

    @classmethod
    def parse(cls, raw: bytes | None) -> State | None:
        """The state; None when there is none, or none that can be read."""
        try:
            epoch, seq, row_id, definition, server, time = (raw or b"").decode("ascii").split(" ")
            return cls(Position(epoch, int(seq), row_id, definition), server, int(time))
        except ValueError:
            return None

    @property
    def epoch(self) -> str:
        return self.position.epoch

    @property
    def seq(self) -> int:
        return self.position.seq
