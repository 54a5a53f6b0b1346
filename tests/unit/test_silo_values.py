"""What may reach a column, and what may reach SQL as a name."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from streams.silos import ValueTypes, names


def types_of(postgres_type: str, result: Any) -> ValueTypes:
    return ValueTypes({"odd": lambda _: result}, {"odd": postgres_type})


@pytest.mark.parametrize(
    ("postgres_type", "good", "bad"),
    [
        ("int8", 2**63 - 1, 2**63),
        ("int4", -(2**31), 2**31),
        ("int8", 0, True),
        ("float8", 0.5, float("nan")),
        ("float8", 7, float("inf")),
        ("text", "Mill Lane", "Mill\x00Lane"),
        ("text", "", "\ud800"),
        ("text", "1", 1),
        ("date", dt.date(2026, 11, 22), dt.datetime(2026, 11, 22, tzinfo=dt.UTC)),
        ("bool", False, 0),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused_before_it_spoils_a_chunk(
    postgres_type: str, good: object, bad: object
) -> None:
    """COPY sends thousands of rows at once: one value that cannot be encoded must never be among them."""
    assert types_of(postgres_type, good).read("odd", "x") == good
    with pytest.raises(ValueError, match="is outside what a column of type odd can hold"):
        types_of(postgres_type, bad).read("odd", "x")


def test_long_text_is_for_notes() -> None:
    """Notes may be longer than what lookups are asked by, but not without end, and must be storable."""
    types = ValueTypes({}, {})
    assert types.read("long_text", " Grounds\nstaff only ") == "Grounds\nstaff only"
    assert len(types.read("long_text", "x" * 10_000)) == 10_000
    for text in ("x" * 10_001, "a\x00b", "\ud800"):
        with pytest.raises(ValueError, match=r"is longer than|cannot be stored"):
            types.read("long_text", text)


def test_only_known_types_become_columns() -> None:
    """A type that this package does not know how to encode is refused when it is declared, not when rows come."""
    with pytest.raises(ValueError, match="is not a type that a silo column may have"):
        types_of("int8; drop table claim", 1)


@pytest.mark.parametrize("name", ['a"b', "a b", "A", "1a", "", "__a", "a;", "ä", "a" * 60, "a\x00"])
def test_a_name_that_is_not_an_identifier_is_never_quoted(name: str) -> None:
    """The one place that quotes names takes plain identifiers only."""
    with pytest.raises(ValueError, match=r"must be|is longer"):
        names.quoted(name)
