"""One line of the bench: two sides measured in turns, and the bar their ratio is held against."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer, round by round. `value` is the median of the rounds' ratios, ours to theirs."""

    id: str
    measure: str
    better: Literal["higher", "lower"]
    must: float
    aim: float
    unit: str
    pairs: Sequence[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.pairs]

    @property
    def value(self) -> float:
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        return self.value >= self.must if self.better == "higher" else self.value <= self.must

    def row(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """The row of bench.json."""
        return {
            "id": self.id,
            "measure": self.measure,
            "value": round(self.value, 3),
            "better": self.better,
            "must": self.must,
            "aim": self.aim,
            "rounds": [round(ratio, 3) for ratio in self.ratios],
            "versions": dict(versions),
        }

    def line(self) -> str:
        """The line of the table."""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        ours, theirs = (statistics.median(side) for side in zip(*self.pairs, strict=True))
        bar = f"{'≥' if self.better == 'higher' else '≤'} {self.must:g} (aim {self.aim:g})"
        return (
            f"{'✓' if self.is_met else '✗'} {self.id:4} {self.measure:12} {self.value:6.2f}  "
            f"[{low:.2f} to {high:.2f}]  {bar:18} {ours:.2f} against {theirs:.2f} {self.unit}"
        )
