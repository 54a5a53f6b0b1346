"""Status tables: total in both directions, and stable however often a status goes back and forth."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from streams.declared import InvalidDeclaration
from streams.errors import Rejected
from streams.mapping.compile import Mapping
from streams.mapping.declaration import FieldDeclaration, RecipientDeclaration
from tests.unit.mapping_case import CASE, CASE_TYPE, declared

# a busy machine is no fault of the code
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

STATUSES = CASE_TYPE.statuses


def yaml_table(table: dict[str, str]) -> str:
    return "{" + ", ".join(f"'{key}': '{value}'" for key, value in table.items()) + "}"


def with_status(codes: list[str], forward: dict[str, str], reverse: dict[str, str]) -> RecipientDeclaration:
    listed = ", ".join(f"'{code}'" for code in codes)
    return declared(
        "{to: x, from: category}",
        f"status:\n  column: state\n  codes: [{listed}]\n"
        f"  forward: {yaml_table(forward)}\n  reverse: {yaml_table(reverse)}\n",
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Any code list and any total tables over it."""
    codes = draw(st.lists(st.text("abcXYZ 019", min_size=1, max_size=5), min_size=1, max_size=7, unique=True))
    forward = {status: draw(st.sampled_from(codes)) for status in STATUSES}
    reverse = {code: draw(st.sampled_from(STATUSES)) for code in codes}
    return codes, forward, reverse


@UNHURRIED
@given(tables())
def test_what_compiles_keeps_the_law(given_tables: tuple[list[str], dict[str, str], dict[str, str]]) -> None:
    """A status read from the recipient, sent to it and read again is the same; other tables do not compile."""
    codes, forward, reverse = given_tables
    lawful = all(reverse[forward[reverse[code]]] == reverse[code] for code in codes)
    declaration = with_status(codes, forward, reverse)
    if not lawful:
        with pytest.raises(InvalidDeclaration, match="comes back as another status"):
            Mapping.compile(declaration, CASE_TYPE)
        return
    mapping = Mapping.compile(declaration, CASE_TYPE)
    for code in codes:
        status = mapping.reverse_status(code)
        assert status in STATUSES
        pushed = mapping.forward({**CASE, "status": status})["state"]
        assert mapping.reverse_status(pushed) == status


@UNHURRIED
@given(tables(), st.text(max_size=60))
def test_an_unknown_code_is_rejected_and_never_guessed(
    given_tables: tuple[list[str], dict[str, str], dict[str, str]], code: str
) -> None:
    """A code that nobody declared names the status column, whatever it looks like."""
    codes, forward, _ = given_tables
    assume(code not in codes)
    back = {sent: status for status, sent in reversed(forward.items())}
    reverse = {known: back.get(known, STATUSES[0]) for known in codes}
    assume(all(reverse[forward[reverse[known]]] == reverse[known] for known in codes))
    mapping = Mapping.compile(with_status(codes, forward, reverse), CASE_TYPE)
    with pytest.raises(Rejected) as caught:
        mapping.reverse_status(code)
    assert caught.value.field == "state"
    assert len(caught.value.reason) < 400


def test_codes_may_be_numbers() -> None:
    """A recipient with numeric states gets whole numbers, and is read back by their text."""
    mapping = Mapping.compile(
        declared(
            "{to: x, from: category}",
            "status:\n  column: state\n  codes: [10, 20]\n"
            "  forward: {open: 10, in_progress: 10, fixed: 20, no_further_action: 20, closed: 20}\n"
            "  reverse: {10: open, 20: fixed}\n",
        ),
        CASE_TYPE,
    )
    assert mapping.forward(CASE)["state"] == 10
    assert mapping.kinds["state"] == "integer"
    assert mapping.reverse_status("20") == mapping.reverse_status(20) == "fixed"


def test_a_status_we_own_is_pushed_with_every_change() -> None:
    """owner: gateway writes the column each time and reads nothing back; owner: remote leaves it to the recipient."""
    rest = (
        "status:\n  column: state\n  owner: gateway\n  codes: [a, b]\n"
        "  forward: {open: a, in_progress: a, fixed: b, no_further_action: b, closed: b}\n"
    )
    ours = Mapping.compile(declared("{to: x, from: category}", rest), CASE_TYPE)
    assert ours.remote_columns == frozenset()
    theirs = Mapping.compile(
        declared("{to: x, from: category}", rest.replace("owner: gateway", "reverse: {a: open, b: fixed}")), CASE_TYPE
    )
    assert theirs.remote_columns == {"state"}


def test_the_words_of_a_row_are_kept_apart() -> None:
    """`from` is a word of Python too, so the model calls it sources; a person writes only `from`."""
    assert FieldDeclaration.model_validate({"to": "x", "from": "category"}).sources == ("category",)
