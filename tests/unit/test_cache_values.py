"""Values are read in every spelling people use, into one form, and tags are made from that form alone."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.values import VALUE_TYPES, Index, Malformed, Tagger, canonical, framed

KEY = b"t" * 32
INDEXES = (
    Index("uprn", ("uprn",), "value", ("uprn",)),
    Index("postcode", ("postcode",), "value", ("postcode",)),
    Index("place", ("easting", "northing"), "tile", ("easting", "northing")),
    Index("surname", ("surname",), "name", ("name",)),
)
TAGGER = Tagger("town", {"address": INDEXES}, KEY, "1")

SPELLINGS: list[tuple[str, object, Any]] = [
    ("postcode", "bn159jb", "BN15 9JB"),
    ("postcode", " Bn15\N{NO-BREAK SPACE}9jB ", "BN15 9JB"),
    ("postcode", "BN15-9JB", "BN15 9JB"),
    ("postcode", "ec1a1bb", "EC1A 1BB"),
    ("postcode", "M1 1AE", "M1 1AE"),
    ("postcode", "GIR 0AA", "GIR 0AA"),
    ("postcode", "\uff22\uff2e\uff11\uff15 9JB", "BN15 9JB"),
    ("uprn", "000060001449", 60001449),
    ("uprn", 60001449, 60001449),
    ("uprn", 60001449.0, 60001449),
    ("usrn", " 04500123 ", 4500123),
    ("easting", "518072", 518072.0),
    ("easting", Decimal("518072.5"), 518072.5),
    ("northing", 103649, 103649.0),
    ("metres", -0.0, 0.0),
    ("text", "  Café\N{COMBINING ACUTE ACCENT} ", "Café\N{COMBINING ACUTE ACCENT}"),
    ("text", "e\N{COMBINING ACUTE ACCENT}t\N{COMBINING CIRCUMFLEX ACCENT}", "ét\N{COMBINING CIRCUMFLEX ACCENT}"),
    ("name", "  O\N{COMBINING DIAERESIS}STLUND \t Straße", "östlund strasse"),
    ("nino", "qq 12 34 56 c", "QQ123456C"),
    ("date", "2026-11-22", dt.date(2026, 11, 22)),
    ("date", "7/1/1980", dt.date(1980, 1, 7)),
    ("date", dt.date(1980, 1, 7), dt.date(1980, 1, 7)),
    ("integer", "-12", -12),
    ("number", "1.5e3", 1500.0),
    ("boolean", "Yes", True),
    ("boolean", 0, False),
    ("reference", " rap-7kq2-93xd ", "RAP-7KQ2-93XD"),
]
REFUSED: list[tuple[str, object]] = [
    ("postcode", "SW1A"),
    ("postcode", "BN15 9CI"),
    ("postcode", "15BN 9JB"),
    ("postcode", 15),
    ("postcode", "BN15 9JB; drop table"),
    ("uprn", "0"),
    ("uprn", "1234567890123"),
    ("uprn", "12a"),
    ("uprn", True),
    ("uprn", 1.5),
    ("usrn", "123456789"),
    ("easting", 700_001),
    ("easting", "nan"),
    ("easting", math.inf),
    ("northing", -1),
    ("metres", "1_000"),
    ("metres", 50_001),
    ("text", "   "),
    ("text", "x" * 257),
    ("text", "nul\x00"),
    ("text", "lone \ud800 surrogate"),
    ("text", 7),
    ("name", ""),
    ("nino", "QQ123456E"),
    ("date", "31/2/2026"),
    ("date", "22-11-2026"),
    ("date", "0000-01-01"),
    ("integer", 2**63),
    ("integer", "1.0"),
    ("integer", math.nan),
    ("number", "1,000"),
    ("number", 10**400),
    ("number", None),
    ("boolean", "maybe"),
    ("boolean", 2),
    ("reference", "-RAP"),
    ("reference", "RAP 7KQ2"),
    ("reference", "x" * 65),
]


@pytest.mark.parametrize(("name", "written", "meant"), SPELLINGS)
def test_a_value_is_read_in_every_usual_spelling(name: str, written: object, meant: object) -> None:
    """Whatever people write, it becomes the one form that is stored and compared."""
    assert VALUE_TYPES[name].normalise(written) == meant
    assert type(VALUE_TYPES[name].normalise(written)) is type(meant)


@pytest.mark.parametrize(("name", "written"), REFUSED)
def test_what_is_not_such_a_value_is_refused_without_repeating_it(name: str, written: object) -> None:
    """The error names the type's rule and its code; the value, which may be personal, is not in it."""
    with pytest.raises(Malformed) as caught:
        VALUE_TYPES[name].normalise(written)
    assert caught.value.code == f"malformed_{name}"
    if len(str(written)) > 3:
        assert str(written) not in str(caught.value)


@given(st.sampled_from(sorted(VALUE_TYPES)), st.text() | st.integers() | st.floats() | st.dates() | st.booleans())
def test_what_a_normaliser_gives_it_leaves_alone(name: str, written: object) -> None:
    """Normalising twice is normalising once, for any input; nothing but Malformed is ever raised."""
    normalise = VALUE_TYPES[name].normalise
    try:
        once = normalise(written)
    except Malformed:
        return
    assert normalise(once) == once
    assert canonical(normalise(once)) == canonical(once)


def test_a_row_has_the_tag_of_its_table_and_one_for_each_index() -> None:
    """Equal rows in other spellings have equal tags."""
    row = {"uprn": 1, "postcode": "BN15 9JB", "easting": 518072.0, "northing": 103649.0, "surname": "Östlund"}
    same = {"uprn": "01", "postcode": "bn159jb", "easting": "518072", "northing": 103649, "surname": "ÖSTLUND"}
    tags = TAGGER.row_tags("address", row)
    assert tags == TAGGER.row_tags("address", same)
    assert len(tags) == 5
    assert TAGGER.table_tag("address") in tags
    assert TAGGER.value_tag("address", "postcode", ["BN15 9JB"]) in tags
    assert TAGGER.value_tag("address", "surname", ["östberg"]) in tags  # one bucket by its first letters
    assert TAGGER.value_tag("address", "surname", ["oestlund"]) not in tags


def test_tags_say_nothing_of_the_value() -> None:
    """They are keyed: another key, table, index or silo gives another tag."""
    tag = TAGGER.value_tag("address", "uprn", [1])
    assert len(bytes.fromhex(tag)) == 16
    others = [
        Tagger("town", {"address": INDEXES}, b"u" * 32, "1").value_tag("address", "uprn", [1]),
        Tagger("city", {"address": INDEXES}, KEY, "1").value_tag("address", "uprn", [1]),
        Tagger("town", {"asset": INDEXES}, KEY, "1").value_tag("asset", "uprn", [1]),
        TAGGER.value_tag("address", "uprn", [2]),
        TAGGER.table_tag("address"),
    ]
    assert tag not in others
    assert len(set(others)) == 5


def test_a_row_with_an_index_that_cannot_be_read_has_no_tag_for_it() -> None:
    """Nothing is raised; the caller can ask which index that was."""
    row = {"uprn": 1, "postcode": "nonsense", "easting": None, "northing": 3.0}
    assert TAGGER.row_tags("address", row) == {
        TAGGER.table_tag("address"),
        TAGGER.value_tag("address", "uprn", [1]),
    }
    assert TAGGER.unreadable("address", row) == ["postcode"]


@given(st.floats(0, 700_000), st.floats(0, 1_300_000), st.floats(0, 3_500), st.floats(0, 1), st.floats(0, 2 * math.pi))
def test_whatever_lies_in_a_circle_shares_a_tag_with_it(
    easting: float, northing: float, metres: float, part: float, angle: float
) -> None:
    """A change of any row within the distance touches the circle's answer."""
    there = (easting + metres * part * math.cos(angle), northing + metres * part * math.sin(angle))
    row = {"easting": min(max(there[0], 0), 700_000), "northing": min(max(there[1], 0), 1_300_000)}
    circle = TAGGER.circle_tags("address", "place", easting, northing, metres)
    assert len(circle) <= 64
    assert TAGGER.row_tags("address", row) & set(circle)


def test_a_circle_of_too_many_tiles_hangs_on_the_whole_table() -> None:
    """The tags of one question stay few, whatever it asks."""
    assert TAGGER.circle_tags("address", "place", 518_000, 104_000, 50_000) == [TAGGER.table_tag("address")]


def test_the_definition_changes_with_whatever_changes_a_tag() -> None:
    """Indexes, their types, the silo and the key are in it; the order in which they are declared is not."""
    same = Tagger("town", {"address": tuple(reversed(INDEXES))}, KEY, "1")
    assert same.definition == TAGGER.definition
    others = [
        Tagger("town", {"address": INDEXES}, KEY, "2"),
        Tagger("city", {"address": INDEXES}, KEY, "1"),
        Tagger("town", {"address": INDEXES[1:]}, KEY, "1"),
        Tagger("town", {"address": (*INDEXES[1:], Index("uprn", ("uprn",), "value", ("usrn",)))}, KEY, "1"),
    ]
    assert len({tagger.definition for tagger in (*others, TAGGER)}) == 5


def test_no_two_lists_of_parts_look_alike() -> None:
    """A value cannot imitate the border between two."""
    assert framed("ab", "c") != framed("a", "bc")
    assert canonical(1) != canonical("1")
    assert canonical(True) != canonical(1)
    assert canonical(None) != canonical("-")


def test_a_beginning_shorter_than_a_bucket_hangs_on_the_whole_table() -> None:
    """Names that begin with one letter lie in many buckets: any change of the table may change that answer."""
    tagger = Tagger("town", {"person": (Index("surname", ("surname",), "name", ("name",)),)}, b"t" * 32, "1")
    smith = tagger.row_tags("person", {"surname": "Smith"})
    for beginning in ("s", "S ", "sm", "smi"):
        assert tagger.value_tag("person", "surname", [beginning]) in smith
