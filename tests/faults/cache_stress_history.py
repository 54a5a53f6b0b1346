"""What a silo's table was at each position of each timeline, and the judge of answers on it."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.group import Answer
from tests.integration.cache_world import BY_POSTCODE, BY_UPRN, rows

Image = dict[int, dict[str, Any]]

# The writer, the servers and the judge have one clock. What is left is the millisecond that a bound is rounded to, and
# the one that Redis rounds its time to.
CLOCK_SLACK_S = 0.005
_SHOWN = 10


@dataclass(slots=True)
class Branch:
    """One timeline of the primary. `images[seq]` is the table there, `acked[seq]` when the writer was told of it.

    The last image may be one whose commit was never acknowledged: it is noted before it is sent. `epochs` were begun
    here. `shared` came with the replica that was promoted, each with the last position that it has here: the first
    commit of a new primary begins an epoch, so no number above that ever stands for a change of this timeline.
    """

    timeline: int
    images: list[Image]
    acked: list[float]
    shared: Mapping[str, int] = field(default_factory=dict)
    epochs: set[str] = field(default_factory=set)

    @property
    def newest(self) -> int:
        return len(self.images) - 1

    def note(self, image: Image) -> None:
        """Before it is sent: an answer may show it as soon as it is committed."""
        self.images.append(image)
        self.acked.append(math.inf)

    def ack(self) -> None:
        self.acked[-1] = time.time()

    def resolve(self, seq: int) -> None:
        """After a broken connection: was the last one committed?"""
        if seq == self.newest - 1 and self.acked[-1] == math.inf:
            self.images.pop()
            self.acked.pop()
            return
        assert seq == self.newest, f"the silo is at {seq}, the writer at {self.newest}"
        if self.acked[-1] == math.inf:
            self.ack()

    def last_of(self, epoch: str) -> int:
        """The last image here that an answer of that epoch may be; -1 if none may."""
        return self.newest if epoch in self.epochs else self.shared.get(epoch, -1)

    def committed_before(self, moment: float) -> int:
        """The last position that was acknowledged by then."""
        # Only the last can be unknown, so the times are in order.
        return bisect_right(self.acked, moment) - 1


class History:
    """All timelines, and what was wrong with any answer."""

    def __init__(self, timeline: int, first: Iterable[Image]) -> None:
        images = list(first)
        self.current = Branch(timeline, images, [0.0] * len(images))
        self.branches = {timeline: self.current}
        self.violations: list[str] = []
        self.sources: Counter[str] = Counter()
        self.bounded = 0
        self.lost = 0
        self.on_dead = 0

    def fork(self, timeline: int, seq: int, epochs: Iterable[str]) -> int:
        """A replica that was at `seq` of the current timeline is the primary now; returns how many commits are lost."""
        parent = self.current
        lost = sum(moment < math.inf for moment in parent.acked[seq + 1 :])
        # One that the parent had from its own parent ends where that one did.
        shared = {epoch: min(seq, parent.last_of(epoch)) for epoch in epochs}
        branch = Branch(timeline, parent.images[: seq + 1], parent.acked[: seq + 1], shared)
        # The replica has it: then it was committed, whatever the writer knows.
        branch.acked = [moment if moment < math.inf else time.time() for moment in branch.acked]
        self.current = self.branches[timeline] = branch
        self.lost += lost
        return lost

    def learn(self, epochs: Mapping[str, int]) -> None:
        """Epochs with the timelines that they were begun on."""
        for epoch, timeline in epochs.items():
            self.branches[timeline].epochs.add(epoch)

    def knows(self, epoch: str) -> bool:
        return any(epoch in branch.epochs for branch in self.branches.values())

    def judge(self, lookup: str, value: object, answer: Answer, asked: float) -> None:
        """Right is what was right at any position from the answer's as-of on, in the timeline of its epoch.

        That is the one that the epoch was begun on, lost commits included; up to a fork, what is right there is right
        on the other timeline too. Where the answer says how old it can be at most, it must also have what was committed
        so long before `asked`.
        """
        self.sources[answer.source] += 1
        at, bound = answer.as_of, answer.staleness_bound_ms
        shown = frozenset(row["address"] for row in rows(answer))
        before = -math.inf if bound is None else asked - bound / 1000 - CLOCK_SLACK_S
        self.bounded += bound is not None
        for branch in reversed(self.branches.values()):
            lowest, last = max(at.seq, branch.committed_before(before)), branch.last_of(at.epoch)
            if any(shown == right(branch.images[seq], lookup, value) for seq in range(lowest, last + 1)):
                self.on_dead += branch is not self.current
                return
        if len(self.violations) < _SHOWN:
            found = {branch.timeline: self._found(branch, lookup, value, shown) for branch in self.branches.values()}
            homes = {
                branch.timeline: last for branch in self.branches.values() if (last := branch.last_of(at.epoch)) >= 0
            }
            self.violations.append(
                f"{answer.source} {lookup} {value} as of {at.token}, at most {bound} ms old, shows {sorted(shown)}:"
                f" that was right at {found} (timeline: positions), the epoch is of {homes} (timeline: last position),"
                f" the newest is"
                f" {self.current.timeline}/{self.current.newest}"
            )
        else:
            self.violations.append("…")

    @staticmethod
    def _found(branch: Branch, lookup: str, value: object, shown: frozenset[str]) -> str:
        """Where in a timeline an answer was right: the last run of positions."""
        was = [seq for seq, image in enumerate(branch.images) if right(image, lookup, value) == shown]
        if not was:
            return "never"
        first = last = was.pop()
        while was and was[-1] == first - 1:
            first = was.pop()
        return f"{first}-{last}"


def right(image: Image, lookup: str, value: object) -> frozenset[str]:
    """The addresses that a lookup answers there."""
    found = image.values()
    if lookup == BY_POSTCODE.name:
        return frozenset(row["address"] for row in found if row["postcode"] == value)
    if lookup == BY_UPRN.name:
        return frozenset(row["address"] for row in found if row["uprn"] == value)
    return frozenset(row["address"] for row in found if abs(row["easting"] - float(str(value))) <= RADIUS)


RADIUS = 700
