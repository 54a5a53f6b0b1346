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
_LOST_COMMIT = Rules("", ("m", "m"), invalidators=1, faults={"postgres": 1})


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


def test_an_applier_that_goes_on_with_the_epoch_of_another_server_is_caught() -> None:
    """Were the first commit after a promotion made under the old epoch, seqs of two timelines would meet in it."""
    found = explore(Model(replace(_LOST_COMMIT, minds_server=False)), most=20_000)
    assert found.wrong is not None
    print(f"\n{found}")  # noqa: T201 - what the search saw is its result


def test_a_commit_that_was_lost_is_never_claimed() -> None:
    """With it, an answer has every change at or below its as-of, those included that a failover of Postgres lost."""
    found = _searched(_LOST_COMMIT, most=60_000)
    assert found.complete
    assert found.worlds >= 10_000
