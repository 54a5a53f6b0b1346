"""No world that can be reached serves a wrong answer: what `world.py` says, searched."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.model.moves import Model
from tests.model.search import Found, explore
from tests.model.world import Rules
from tests.model.worlds import LARGE, SMALL

_ALL = os.environ.get("SILOGATE_TEST_FAULTS") == "all"
_MOST = 600_000 if _ALL else 12_000
# Every way out of every script that has a name.
_REPLIES = {
    ("apply", "applied"), ("apply", "moved"), ("apply", "lost"),
    ("epoch", "begun"), ("epoch", "moved"), ("epoch", "used"),
    ("beat", "beaten"), ("beat", "moved"),
    ("fill", "stored"), ("fill", "kept"), ("fill", "tag"), ("fill", "floor"), ("fill", "epoch"),
    ("fill", "no_state"), ("fill", "no_tags"),
}  # fmt: skip
_LOST_COMMIT = Rules("", ("m", "m"), invalidators=1, strict=True, faults={"postgres": 1})


def _searched(rules: Rules, most: int) -> Found:
    found = explore(Model(rules), most=most)
    print(f"\n{rules.name}: {found}{'' if found.complete else ', and there are more'}")  # noqa: T201 - what the search saw is its result
    assert found.wrong is None, str(found)
    return found


@pytest.mark.parametrize("rules", SMALL, ids=lambda rules: rules.name.replace(" ", "-"))
def test_every_reachable_world_is_right(rules: Rules) -> None:
    """Searched to the end: no answer misses a change, no time is too late, all comes to rest with what is true."""
    found = _searched(rules, most=100_000)
    assert found.complete
    assert found.worlds >= rules.least


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rules", LARGE, ids=lambda rules: rules.name.replace(" ", "-"))
def test_larger_worlds_are_right_as_far_as_they_are_searched(rules: Rules) -> None:
    """The same with more that changes and fails: the shortest ways first, much further in `make faults`."""
    found = _searched(rules, most=_MOST)
    assert found.complete or found.worlds == _MOST
    assert found.worlds >= 12_000


def test_the_searches_go_every_way_through_the_scripts() -> None:
    """Each reply that a script has is given in some world, so none of its conditions goes untried."""
    replies: set[tuple[str, str]] = set()
    for name in ("FLUSHALL", "a key without a TTL is lost", "tags are trimmed", "Redis fails over", "eviction"):
        [rules] = [rules for rules in SMALL if rules.name == name]
        model = Model(rules)
        explore(model, most=3_000)
        replies |= model.scripts.replies
    for rules in SMALL:
        if rules.beats or "back" in rules.faults or "x" in rules.programme:
            model = Model(rules)
            explore(model, most=3_000)
            replies |= model.scripts.replies
    assert replies >= _REPLIES


def test_a_lost_commit_may_be_missing_until_the_next_epoch() -> None:
    """The known limit: a change that a failover of Postgres lost can be missing from an answer at or above its seq.

    Until an invalidator sees the promotion, the new timeline writes under the old epoch, and its seq is compared with
    the tags of the old one. No change that the database still has is ever missing (the tests above).
    """
    found = explore(Model(_LOST_COMMIT), most=20_000)
    assert found.wrong is not None


def test_an_applier_that_begins_an_epoch_on_a_promoted_server_has_no_such_limit() -> None:
    """Were the first commit of another server to mint, seqs of two timelines would never meet in one epoch."""
    found = _searched(replace(_LOST_COMMIT, minds_server=True), most=60_000)
    assert found.complete
    assert found.worlds >= 10_000
