"""A lookup over a silo and the gateway's own cases: what was submitted a moment ago counts before any silo knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from cache.answer import Answer, AsOf, Verdict
from cache.cases import UncachedLookup, etag_of
from cache.group import Group
from cache.loader import SiloUnavailable


class JoinedLookup:
    """Asks both at once. Rows of cases come first; `one` and `exists` give the first row there is.

    `found` if either has rows, `not_found` only if both say so, `cannot_tell` while the cases cannot be read. As-of and
    age are the silo's, as the cases are always of now.
    """

    def __init__(self, group: Group, cases: UncachedLookup) -> None:
        self.group = group
        self._cases = cases

    async def answer(
        self, parameters: Mapping[str, object], *, timeout_s: float, min_as_of: AsOf | None = None
    ) -> Answer:
        """The joined answer; raises SiloUnavailable when the silo gives none and no case alone decides."""
        asked = await asyncio.gather(
            self._cases.read(parameters, timeout_s=timeout_s),
            self.group.answer(parameters, timeout_s=timeout_s, min_as_of=min_as_of),
            return_exceptions=True,
        )
        of_cases, of_silo = asked
        if isinstance(of_cases, BaseException):
            raise of_cases
        if isinstance(of_silo, SiloUnavailable) and of_cases.verdict == "found":
            # A case that is there is there, whatever the silo would say. Its position is one that no answer meets.
            return replace(of_cases, as_of=AsOf(self.group.definition.silo, "none", 0), staleness_bound_ms=None)
        if isinstance(of_silo, BaseException):
            raise of_silo
        return self._join(of_cases, of_silo)

    def _join(self, of_cases: Answer, of_silo: Answer) -> Answer:
        verdict, reason = _verdict(of_cases, of_silo)
        # What the silo itself is not sure of is not made sure by a case.
        doubtful = verdict == "found" and of_silo.verdict == "cannot_tell"
        results = of_cases.results if doubtful else self._rows(of_cases.results, of_silo.results)
        return replace(of_silo, verdict=verdict, reason=reason, results=results, etag=etag_of(results, verdict))

    def _rows(self, of_cases: bytes, of_silo: bytes) -> bytes:
        if of_cases == b"[]":
            return of_silo
        if of_silo == b"[]" or self.group.definition.shape != "many":
            return of_cases
        return of_cases[:-1] + b"," + of_silo[1:]


def _verdict(of_cases: Answer, of_silo: Answer) -> tuple[Verdict, str | None]:
    if of_cases.verdict == "cannot_tell":
        return "cannot_tell", of_cases.reason
    if "found" in (of_cases.verdict, of_silo.verdict):
        return "found", None
    return of_silo.verdict, of_silo.reason
