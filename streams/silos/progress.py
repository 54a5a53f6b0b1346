"""What a load says of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is. `bytes_total` is what the source files measured when they were opened."""

    phase: Literal["reading", "comparing", "applying"]
    rows: int
    rejected: int
    bytes_read: int
    bytes_total: int


OnProgress = Callable[[LoadProgress], None]


def silent(_: LoadProgress) -> None:
    """Nobody is watching."""
