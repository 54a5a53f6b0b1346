"""A lookup over a silo and over cases: either finds, only both deny, and without the cases nobody can tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from cache.answer import Answer, AsOf, Verdict
from cache.cases import UncachedLookup
from cache.group import Group
from cache.joined import JoinedLookup
from cache.loader import SiloUnavailable
from tests.integration.cache_world import BY_POSTCODE, CLAIM_OPEN

SILO_ROW, CASE_ROW = b'[{"ref":"S-1"},{"ref":"S-2"}]', b'[{"ref":"C-1"}]'
NOW = AsOf("town", "5f0c91aa", 118)


def answer(verdict: Verdict, results: bytes = b"[]", reason: str | None = None, **changed: Any) -> Answer:
    made = Answer(verdict, results, NOW, 'W/"silo"', 3.0, 3001, "hit", reason)
    return replace(made, **changed)


class _Group:
    """The silo's side: answers or fails as it is told."""

    def __init__(self, says: Answer | Exception, shape: str) -> None:
        self.definition = replace(BY_POSTCODE if shape == "many" else CLAIM_OPEN, shape=cast("Any", shape))
        self.says = says
        self.min_as_of: AsOf | None = None

    async def answer(self, _: object, *, timeout_s: float, min_as_of: AsOf | None = None) -> Answer:
        assert timeout_s == 1.5
        self.min_as_of = min_as_of
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class _Cases:
    def __init__(self, says: Answer) -> None:
        self.says = says

    async def read(self, _: object, *, timeout_s: float) -> Answer:
        assert timeout_s == 1.5
        return self.says


async def joined(silo: Answer | Exception, cases: Answer, shape: str = "many") -> Answer:
    group = _Group(silo, shape)
    found = await JoinedLookup(cast("Group", group), cast("UncachedLookup", _Cases(cases))).answer(
        {}, timeout_s=1.5, min_as_of=NOW
    )
    assert group.min_as_of == NOW
    return found


FOUND, NONE = answer("found", SILO_ROW), answer("not_found")
DOUBT = answer("cannot_tell", SILO_ROW, "too_old")
CASE, NO_CASE = answer("found", CASE_ROW), answer("not_found")
UNREAD = answer("cannot_tell", b"[]", "cases_unreadable")
JOINED = {
    "both have rows": (FOUND, CASE, ("found", None, ["C-1", "S-1", "S-2"])),
    "the silo has rows": (FOUND, NO_CASE, ("found", None, ["S-1", "S-2"])),
    "a case has rows": (NONE, CASE, ("found", None, ["C-1"])),
    "neither has rows": (NONE, NO_CASE, ("not_found", None, [])),
    "the silo cannot tell": (DOUBT, NO_CASE, ("cannot_tell", "too_old", ["S-1", "S-2"])),
    "the silo cannot tell and a case has rows": (DOUBT, CASE, ("found", None, ["C-1"])),
    "the cases cannot be read": (FOUND, UNREAD, ("cannot_tell", "cases_unreadable", ["S-1", "S-2"])),
    "the cases cannot be read and the silo denies": (NONE, UNREAD, ("cannot_tell", "cases_unreadable", [])),
    "the silo is away and a case has rows": (SiloUnavailable("town"), CASE, ("found", None, ["C-1"])),
}


@pytest.mark.parametrize(("silo", "cases", "expected"), JOINED.values(), ids=JOINED.keys())
async def test_the_verdict_and_the_rows_of_both(silo: Answer | Exception, cases: Answer, expected: object) -> None:
    """Rows of cases come first; a doubt of the silo is not made sure by a case."""
    found = await joined(silo, cases)
    assert (found.verdict, found.reason, [row["ref"] for row in json.loads(found.results)]) == expected


@pytest.mark.parametrize("cases", [NO_CASE, UNREAD])
async def test_without_the_silo_and_without_a_case_nothing_answers(cases: Answer) -> None:
    """A silo that is away is no `not_found`."""
    with pytest.raises(SiloUnavailable):
        await joined(SiloUnavailable("town"), cases)


@pytest.mark.parametrize("shape", ["one", "exists"])
async def test_a_single_row_stays_single(shape: str) -> None:
    """The case's where there is one, else the silo's."""
    assert (await joined(answer("found", b'[{"ref":"S-1"}]'), CASE, shape)).results == CASE_ROW
    assert (await joined(answer("found", b'[{"ref":"S-1"}]'), NO_CASE, shape)).results == b'[{"ref":"S-1"}]'


async def test_as_of_and_age_are_the_silos_and_the_etag_is_of_both() -> None:
    """Whoever holds the silo's answer alone is never told that it is still the answer."""
    found, again, alone = await joined(FOUND, CASE), await joined(FOUND, CASE), await joined(FOUND, NO_CASE)
    assert (found.as_of, found.age_s, found.staleness_bound_ms, found.source) == (NOW, 3.0, 3001, "hit")
    assert found.etag == again.etag
    assert len({found.etag, alone.etag, FOUND.etag}) == 3


async def test_an_answer_without_the_silo_has_a_position_that_none_meets() -> None:
    """Sent back as a token it asks the silo's primary, and is never refused as another silo's."""
    found = await joined(SiloUnavailable("town"), CASE)
    assert found.as_of.silo == "town"
    assert not found.as_of.met_by("5f0c91aa", 118)
    assert AsOf.parse(found.as_of.token).silo == "town"
