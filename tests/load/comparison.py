"""One line of the bench: what was measured, round by round, and the bar that it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Better = Literal["higher", "lower"]


class Row(Protocol):
    """A measure with its bar."""

    @property
    def id(self) -> str: ...
    @property
    def measure(self) -> str: ...
    @property
    def better(self) -> Better: ...
    @property
    def must(self) -> float: ...
    @property
    def aim(self) -> float: ...
    @property
    def rounds(self) -> Sequence[float]: ...
    @property
    def shown(self) -> str: ...


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer, round by round: `rounds` are the ratios, ours to theirs."""

    id: str
    measure: str
    better: Better
    must: float
    aim: float
    unit: str
    pairs: Sequence[tuple[float, float]]
    note: str = ""

    @property
    def rounds(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.pairs]

    @property
    def shown(self) -> str:
        """Both sides, for a person."""
        ours, theirs = (statistics.median(side) for side in zip(*self.pairs, strict=True))
        return self.note or f"{ours:.2f} against {theirs:.2f} {self.unit}"


@dataclass(frozen=True)
class Measured:
    """A number of ours alone that has a bar which it may not cross once: the worst round is judged, or the median."""

    id: str
    measure: str
    must: float
    aim: float
    rounds: Sequence[float]
    shown: str
    is_worst: bool = True
    better: Better = "lower"


def value(row: Row) -> float:
    """What is judged."""
    return max(row.rounds) if isinstance(row, Measured) and row.is_worst else statistics.median(row.rounds)


def meets(row: Row, bar: float) -> bool:
    return value(row) >= bar if row.better == "higher" else value(row) <= bar


def verdict(row: Row) -> str:
    """Whether the bars are met, and how far off the aim is where it is not."""
    if meets(row, row.aim):
        return "aim met"
    off = f"aim off by {abs(value(row) - row.aim) / row.aim:.0%}" if row.aim else f"aim off by {value(row):g}"
    return f"met, {off}" if meets(row, row.must) else f"MISSED, {off}"


def spread(row: Row) -> tuple[float, float]:
    """The quartiles of the rounds; of a single round, that round."""
    if len(row.rounds) < 2:
        return row.rounds[0], row.rounds[0]
    low, _, high = statistics.quantiles(row.rounds, n=4, method="inclusive")
    return low, high


def as_json(row: Row, versions: Mapping[str, str]) -> dict[str, Any]:
    """The row of bench.json."""
    return {
        "id": row.id,
        "measure": row.measure,
        "value": round(value(row), 3),
        "better": row.better,
        "must": row.must,
        "aim": row.aim,
        "rounds": [round(one, 3) for one in row.rounds],
        "versions": dict(versions),
    }
