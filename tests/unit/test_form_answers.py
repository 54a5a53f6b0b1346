"""What the form makes of what people type."""

from __future__ import annotations

import pytest

from gateway.admin.tokens import Tokens
from gateway.dev.form.answers import check_contact, check_postcode, line, paragraphs, readable
from gateway.dev.form.journeys import Journey


@pytest.mark.parametrize(
    ("held", "shown"),
    [
        ("PUBLIC CONVENIENCES BEACH GREEN SHOREHAM-BY-SEA", "Public Conveniences Beach Green Shoreham-by-Sea"),
        ("12A BRIGHTON ROAD, LANCING, BN59 1AA", "12A Brighton Road, Lancing, BN59 1AA"),
        ("O'Connell Street Toilets", "O'Connell Street Toilets"),
        ("", ""),
    ],
)
def test_capitals_are_written_as_people_write(held: str, shown: str) -> None:
    """Names in capitals become readable, postcodes and house numbers stay, anything else is left alone."""
    assert readable(held) == shown


@pytest.mark.parametrize("typed", ["bn591aa", "BN59 1AA", " bn59  1aa ", "B N 5 9 1 A A"])
def test_a_postcode_is_taken_as_typed(typed: str) -> None:
    """Case and spaces do not matter."""
    assert check_postcode(line({"postcode": typed}, "postcode")) == ("BN59 1AA", {})


@pytest.mark.parametrize("typed", ["BN59", "BN59 1A", "1AA BN59", "BN59 1AAA", "BN59 1AA; drop", "BN5\u0669 1AA"])
def test_what_is_no_postcode_is_refused_and_kept(typed: str) -> None:
    """The message is at the field, and what was typed is still there."""
    kept, errors = check_postcode(typed)
    assert kept == typed
    assert list(errors) == ["postcode"]


def test_text_is_cleaned_of_what_nobody_typed() -> None:
    """Control characters, lone surrogates and rows of empty lines go; words and paragraphs stay."""
    assert line({"name": " Zoë\x00\tTest\ud800 "}, "name") == "Zoë Test"
    assert paragraphs({"text": "One.\r\n\r\n\r\n\r\nTwo.\x07\r\n"}, "text") == "One.\n\nTwo."
    assert line({}, "name") == line({"name": b"file"}, "name") == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "alex@example"),
        ("email", "a b@example.org"),
        ("email", "@example.org"),
        ("email", "x" * 300 + "@example.org"),
        ("telephone", "0800 HELP"),
        ("telephone", "1" * 30),
        ("name", "x" * 101),
        ("name", " \u2003\ufeff\x07"),
    ],
)
def test_contact_details_that_the_case_type_would_refuse(field: str, value: str) -> None:
    """What the gateway would not take is named on the page where it was typed."""
    good = {"name": "Alex", "email": "alex@example.org", "telephone": ""}
    assert check_contact(good)[1] == {}
    assert list(check_contact(good | {field: value})[1]) == [field]


def test_a_journey_goes_through_its_pages_once() -> None:
    """The first time page by page; after a change straight back to the check page."""
    journey = Journey()
    assert (journey.next_step(""), journey.missing_before("photo")) == ("find", "find")
    journey.done |= {"find", "toilet", "problem"}
    assert journey.next_step("problem") == "describe"
    journey.done |= {"describe", "photo", "contact"}
    assert journey.next_step("problem") == "check"
    assert journey.missing_before("check") is None


def test_a_token_opens_for_its_purpose_only() -> None:
    """Neither another purpose nor another secret opens it, and no change goes unnoticed."""
    tokens = Tokens(b"k" * 32)
    sealed = tokens.seal("status", "a case")
    assert tokens.open("status", sealed) == "a case"
    assert tokens.open("follow", sealed) is None
    assert Tokens(b"x" * 32).open("status", sealed) is None
    assert tokens.open("status", sealed[:-2] + "AA") is None
    assert tokens.seal("status", "a case") != sealed
