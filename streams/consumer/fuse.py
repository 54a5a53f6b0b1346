"""The fuse of a consumer: when most cases fail, it is not the cases, and parking them all would only hide that."""

from collections import OrderedDict

from streams.consumer.lanes import LaneKey
from streams.consumer.limits import FuseLimits
from streams.errors import Misconfigured


class FuseBlown(Misconfigured):
    """Most cases failed: the consumer stops before it parks them, until somebody has looked and has it resumed."""


class Fuse:
    """Counts each case once, by what became of it last. It outlives the sessions of its consumer."""

    def __init__(self, limits: FuseLimits | None = None) -> None:
        self._limits = limits or FuseLimits()
        self._cases: OrderedDict[LaneKey, bool] = OrderedDict()
        self._failed = 0
        self._consecutive = 0
        self._least = self._limits.least

    def passed(self, case: LaneKey) -> None:
        """Notes that a case went through."""
        self._consecutive = 0
        self._note(case, failed=False)
        if len(self._cases) >= self._least:
            self._least = self._limits.least

    def check(self, cases: list[LaneKey]) -> None:
        """Notes that these cases are about to be parked; raises FuseBlown instead when most cases are."""
        for case in cases:
            if not self._cases.get(case, False):
                self._consecutive += 1
            self._note(case, failed=True)
        seen = len(self._cases)
        is_most = seen >= self._least and self._failed > seen * self._limits.max_ratio
        if not is_most and self._consecutive < self._limits.max_consecutive:
            return
        said = f"fuse: {self._failed} of the last {seen} cases failed; nothing more is parked until it is resumed"
        self._cases.clear()
        self._failed = self._consecutive = 0
        self._least = min(self._limits.probe, self._limits.least)
        raise FuseBlown(said)

    def _note(self, case: LaneKey, *, failed: bool) -> None:
        self._failed += failed - self._cases.pop(case, False)
        self._cases[case] = failed
        while len(self._cases) > self._limits.window:
            self._failed -= self._cases.popitem(last=False)[1]
