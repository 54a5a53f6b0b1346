"""What may be said of an answer, from what is known of its silo."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest

from cache.standing import MOST_REJECTS, Doubts, Standing
from cache.state import Position, State
from cache.values import Index, Tagger

TAGGER = Tagger("town", {"address": (Index("uprn", ("uprn",), "value", ("uprn",)),), "street": ()}, b"t" * 32, "1")
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
FIRST = TAGGER.value_tag("address", "uprn", [1])
SECOND = TAGGER.value_tag("address", "uprn", [2])


def _row(seq: int, load_id: int | None, *rejects: tuple[str, list[str]], **changes: Any) -> dict[str, Any]:
    return {
        "epoch": "e1",
        "seq": seq,
        "definition": TAGGER.definition,
        "load_id": load_id,
        "source_time": NOW if load_id else None,
        "rejects": json.dumps(rejects),
        "rejected_tables": sorted({table for table, _ in rejects}),
        "load_before": load_id - 1 if load_id is not None and load_id > 1 else None,
    } | changes


def _of(row: dict[str, Any], before: Standing | None = None) -> Standing:
    return Standing.of(row, before, TAGGER, tolerant=False)


def _judged(standing: Standing, **changes: Any) -> tuple[str, str | None]:
    given: dict[str, Any] = {
        "negative": True, "epoch": "e1", "seq": standing.seq, "tags": [FIRST], "tables": ["address"],
        "max_age_s": None, "now": NOW,
    }  # fmt: skip
    return standing.judge(**(given | changes))


def test_a_complete_silo_can_tell() -> None:
    """Found and not found are both said."""
    standing = _of(_row(5, 1))
    assert _judged(standing) == ("not_found", None)
    assert _judged(standing, negative=False) == ("found", None)


def test_a_silo_never_loaded_cannot_tell_anything() -> None:
    """Whether or not something was found."""
    standing = _of(_row(0, None))
    for negative in (True, False):
        assert _judged(standing, negative=negative) == ("cannot_tell", "not_loaded")


@pytest.mark.parametrize(("age_s", "limit", "verdict"), [(60, 61, "not_found"), (62, 61, "cannot_tell")])
def test_a_source_may_be_too_old(age_s: int, limit: float, verdict: str) -> None:
    """By the moment that its contents are of."""
    assert _judged(_of(_row(5, 1)), max_age_s=limit, now=NOW + dt.timedelta(seconds=age_s))[0] == verdict


def test_a_source_of_unknown_age_is_too_old() -> None:
    """Where there is a limit, not knowing is not being young."""
    assert _judged(_of(_row(5, 1, source_time=None)), max_age_s=60) == ("cannot_tell", "too_old")


def test_rejects_put_their_own_tags_in_doubt() -> None:
    """Found stands; another key of the same table is not in doubt; the whole table is."""
    standing = _of(_row(5, 1, ("address", [FIRST])))
    assert _judged(standing) == ("cannot_tell", "doubtful")
    assert _judged(standing, negative=False) == ("found", None)
    assert _judged(standing, tags=[SECOND]) == ("not_found", None)
    assert _judged(standing, tags=[TAGGER.table_tag("address")]) == ("cannot_tell", "doubtful")
    assert _judged(standing, tags=[TAGGER.table_tag("street")], tables=["street"]) == ("not_found", None)


def test_an_unreadable_reject_puts_its_table_in_doubt() -> None:
    """And no other table."""
    standing = _of(_row(5, 1, ("address", [])))
    assert _judged(standing, tags=[SECOND]) == ("cannot_tell", "doubtful")
    assert _judged(standing, tags=[SECOND], tables=["street"]) == ("not_found", None)


def test_too_many_rejects_are_held_as_their_tables() -> None:
    """What is known of doubts has a bound."""
    standing = _of(_row(5, 1, *[("address", [FIRST])] * (MOST_REJECTS + 1)))
    assert standing.doubts == Doubts(tables=frozenset({"address"}))


def test_an_answer_older_than_a_load_keeps_the_doubts_of_the_load_before() -> None:
    """A row that the new load has mended is not in an answer from before it: there it is still in doubt."""
    first = _of(_row(5, 1, ("address", [FIRST])))
    mended = _of(_row(6, 2), first)
    assert _judged(mended, seq=6) == ("not_found", None)
    assert _judged(mended, seq=5) == ("cannot_tell", "doubtful")
    assert _judged(mended, seq=6, epoch="e0") == ("cannot_tell", "unknown")
    seen_again = _of(_row(9, 2, rejects=None), mended)
    assert _judged(seen_again, seq=6) == ("not_found", None)
    assert _judged(seen_again, seq=5) == ("cannot_tell", "doubtful")
    minted = _of(_row(9, 2, rejects=None, epoch="e2"), seen_again)
    assert _judged(minted, seq=9, epoch="e2") == ("not_found", None)
    assert _judged(minted, seq=9, epoch="e1") == ("not_found", None)


def test_a_standing_covers_what_was_there_when_it_was_seen() -> None:
    """A later position, or one of another life, asks for another look."""
    standing = _of(_row(5, 1))
    assert standing.covers("e1", 5)
    assert standing.covers("e1", 4)
    assert not standing.covers("e1", 6)
    assert not standing.covers("e2", 4)


def test_a_position_is_one_line_of_words() -> None:
    """Whatever the database holds, the line has six words, and an empty definition is a hyphen."""
    position = Position.of({"epoch": "e 1", "seq": 7, "id": "", "definition": ""})
    assert position == Position("e_1", 7, "-", "-")
    line = position.expected + b"- 1/2 99"
    assert State.parse(line) == State(position, "1/2", 99)
    assert State.parse(line).position.expected == position.expected  # type: ignore[union-attr] # parsed above
    assert replace(position, seq=8) != position


@pytest.mark.parametrize("raw", [None, b"", b"a b c d e f", b"e 1 i d s", b"e 1 i d s 9 x", b"\xff 1 i d s 9"])
def test_a_line_that_is_no_state_is_none(raw: bytes | None) -> None:
    """Nothing else in Redis is taken for one."""
    assert State.parse(raw) is None


def test_doubts_older_than_anybody_remembers_are_not_taken_for_none() -> None:
    """An answer from before the oldest load known here cannot say `not_found`: what was rejected then is forgotten."""
    rejected = _of(_row(1, 1, ("address", [FIRST])))
    mended = _of(_row(2, 2), rejected)
    assert _judged(mended, seq=1) == ("cannot_tell", "doubtful")
    again = _of(_row(3, 3), mended)
    assert _judged(again, seq=1) == ("cannot_tell", "unknown")
    assert _judged(again, seq=2) == ("not_found", None)
    restarted = _of(_row(2, 2))
    assert _judged(restarted, seq=1) == ("cannot_tell", "unknown")
    assert _judged(restarted, seq=2) == ("not_found", None)


def test_an_answer_from_before_a_load_is_as_old_as_its_own_source() -> None:
    """A replica that is stuck does not become fresh because another source was loaded since."""
    old = NOW - dt.timedelta(days=30)
    before = _of(_row(1, 1, source_time=old))
    after = _of(_row(2, 2), before)
    assert _judged(after, seq=1, max_age_s=86400) == ("cannot_tell", "too_old")
    assert _judged(after, seq=2, max_age_s=86400) == ("not_found", None)


def test_more_rejects_than_are_read_hide_no_table() -> None:
    """The list of rejects ends at its limit; the list of tables that have some does not."""
    many: list[tuple[str, list[str]]] = [("street", [])] * (MOST_REJECTS + 1)
    standing = _of(_row(1, 1, *many, rejected_tables=["address", "street"]))
    assert _judged(standing) == ("cannot_tell", "doubtful")


def test_an_answer_older_than_anybody_remembers_may_be_of_a_source_of_any_age() -> None:
    """Where there is a limit, that is not `found`: neither two loads back nor in a timeline that has ended."""
    hours = {1: 48, 2: 24, 3: 0}
    standing: Standing | None = None
    for load_id, age_h in hours.items():
        row = _row(load_id * 10, load_id, source_time=NOW - dt.timedelta(hours=age_h))
        standing = _of(row, standing)
    assert standing is not None
    for negative in (True, False):
        judged = [_judged(standing, negative=negative, seq=seq, max_age_s=30 * 3600) for seq in (19, 20, 30)]
        said = ("not_found" if negative else "found", None)
        assert judged == [("cannot_tell", "too_old"), said, said]
    assert _judged(standing, negative=False, seq=19) == ("found", None)
    restarted = _of(_row(30, 3))
    assert _judged(restarted, negative=False, seq=31, epoch="e0", max_age_s=3600) == ("cannot_tell", "too_old")


def test_a_load_that_nobody_saw_leaves_its_doubts_unknown() -> None:
    """It completed and was followed by another between two looks: whatever it rejected, an answer from it may lack."""
    first = _of(_row(10, 1))
    skipped = _of(_row(30, 3), first)
    assert _judged(skipped, seq=20) == ("cannot_tell", "unknown")
    assert _judged(skipped, seq=10) == ("cannot_tell", "unknown")
    assert _judged(skipped, seq=30) == ("not_found", None)
    followed = _of(_row(40, 4), skipped)
    assert [_judged(followed, seq=seq)[0] for seq in (29, 30, 40)] == ["cannot_tell", "not_found", "not_found"]


def test_an_answer_from_before_the_first_load_was_complete_is_not_complete() -> None:
    """The silo has been loaded since: a replica that is still half-way there does not know what there is."""
    loaded = _of(_row(9, 1), _of(_row(3, None)))
    assert _judged(loaded, seq=5) == ("cannot_tell", "unknown")
    assert _judged(loaded, seq=9) == ("not_found", None)
