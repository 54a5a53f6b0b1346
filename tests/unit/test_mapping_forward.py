"""What a recipient's columns get of a case, and how a value that does not fit is named."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import Misconfigured, Rejected
from streams.mapping.columns import Column
from streams.testing import case_event
from tests.unit.mapping_case import CASE, compiled, sent

# a busy machine is no fault of the code
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("{to: x, from: asset.name}", "Monks Recreation Ground"),
        ("{to: x, from: place.ward}", "Mash Barn"),
        ("{to: x, from: asset.name, convert: upper}", "MONKS RECREATION GROUND"),
        (
            "{to: x, from: asset.name, convert: [lower, {prefix: 'site '}, {suffix: '.'}]}",
            "site monks recreation ground.",
        ),
        ("{to: x, from: asset.uprn, type: integer, convert: integer}", 60001449),
        ("{to: x, from: asset.uprn, type: number, convert: number}", 60001449.0),
        ("{to: x, from: cubicles, type: integer}", 4),
        ("{to: x, from: cubicles, type: number}", 4),
        ("{to: x, from: cubicles, convert: text}", "4"),
        ("{to: x, from: cubicles, type: number, convert: [{scale: 2.5}, {round: 1}]}", 10.0),
        ("{to: x, from: location.northing, type: integer, convert: integer}", 104730),
        ("{to: x, from: urgent, type: boolean}", True),
        ("{to: x, from: urgent, table: {true: Y, false: N}}", "Y"),
        ("{to: x, from: category, table: {litter: 7, blocked: 8, other: 9}, type: integer}", 7),
        ("{to: x, from: category, table: {litter: null, blocked: B, other: O}}", None),
        ("{to: x, from: category, table: {litter: null, blocked: B, other: O}, default: Z}", "Z"),
        ("{to: x, from: seen_on, type: date}", date(2026, 11, 21)),
        ("{to: x, from: seen_on}", "2026-11-21"),
        ("{to: x, from: seen_on, date: '%d/%m/%Y'}", "21/11/2026"),
        ("{to: x, from: seen_at, type: timestamp}", datetime(2026, 7, 1, 23, 30, tzinfo=UTC)),
        ("{to: x, from: seen_at, type: date}", date(2026, 7, 1)),
        (
            "{to: x, from: seen_at, type: local_timestamp, convert: [timestamp, {local: Europe/London}]}",
            datetime(2026, 7, 2, 0, 30),  # noqa: DTZ001 - summer time, as a clock on a wall in Lancing shows it
        ),
        (
            "{to: x, from: seen_at, convert: [timestamp, {local: Europe/London}], date: '%d-%b-%Y %H:%M'}",
            "02-Jul-2026 00:30",
        ),
        ("{to: x, from: [location.street, location.town], convert: {join: ', '}}", "Crabtree Lane, Lancing"),
        ("{to: x, from: 'notes[0].text', pii: true}", "Bins are full."),
        ("{to: x, from: 'notes[-1].text', pii: true}", "Still full."),
        ("{to: x, from: 'notes[2].text', pii: true}", None),
        ("{to: x, from: 'notes[].text', pii: true, convert: {join: ' / '}}", "Bins are full. / Still full."),
        ("{to: x, from: 'tags[]', convert: {join: '+'}}", "night+smell"),
        ("{to: x, from: 'tags[1]'}", "smell"),
        ("{to: x, from: submitter.telephone, pii: true, convert: digits}", "01632960001"),
        ("{to: x, from: asset.name, convert: {shorten: 12}}", "Monks Re […]"),
        ("{to: x, from: priority, type: integer, default: 3}", 3),
        ("{to: x, default: web}", "web"),
        ("{to: x, type: date, default: '2026-01-31'}", date(2026, 1, 31)),
    ],
)
def test_each_conversion_gives_what_it_says(field: str, expected: object) -> None:
    """Every way to fill a column, on one case."""
    assert sent(field) == expected
    assert type(sent(field)) is type(expected)


def test_whitespace_is_only_touched_where_declared() -> None:
    """strip and collapse do what they say, and without them a text stays as it was typed."""
    case = {"asset": {"name": "  Beach \t Green  "}}
    assert sent("{to: x, from: asset.name}", case) == "  Beach \t Green  "
    assert sent("{to: x, from: asset.name, convert: strip}", case) == "Beach \t Green"
    assert sent("{to: x, from: asset.name, convert: collapse}", case) == "Beach Green"


def test_only_what_the_table_names_is_sent() -> None:
    """A column that no row names is not in the answer, whatever the case holds."""
    assert compiled("{to: site, from: asset.name}").forward(CASE) == {"site": "Monks Recreation Ground"}


def test_the_grid_becomes_degrees() -> None:
    """The Ordnance Survey's own worked example (Caister water tower) lands within five metres."""
    case = {"location": {"easting": 651409.903, "northing": 313177.270}}
    latitude = sent("{to: x, type: number, from: [location.easting, location.northing], grid: wgs84_latitude}", case)
    longitude = sent("{to: x, type: number, from: [location.easting, location.northing], grid: wgs84_longitude}", case)
    assert latitude == pytest.approx(52.658007833, abs=0.00005)
    assert longitude == pytest.approx(1.716073973, abs=0.00008)


GRID = "{to: x, type: number, required: true, from: [location.easting, location.northing], grid: wgs84_latitude}"


@pytest.mark.parametrize(
    ("field", "case", "reason"),
    [
        ("{to: x, from: asset.name, required: true}", {}, "is required and missing"),
        ("{to: x, from: asset.name, required: true}", {"asset": {"name": ""}}, "is required and missing"),
        (
            "{to: x, from: asset.name, required: true, convert: strip}",
            {"asset": {"name": " "}},
            "is required and missing",
        ),
        ("{to: x, from: asset.name, max_chars: 5}", {"asset": {"name": "Lancing"}}, "is longer than 5 characters"),
        ("{to: x, from: asset.name, max_bytes: 5}", {"asset": {"name": "Café£"}}, "is longer than 5 bytes in utf-8"),
        (
            "{to: x, from: asset.name, max_bytes: 4, charset: latin-1}",
            {"asset": {"name": "Café£"}},
            "is longer than 4 bytes in latin-1",
        ),
        ("{to: x, from: asset.name, charset: ascii}", {"asset": {"name": "Café"}}, "holds characters outside ascii"),
        (
            "{to: x, from: asset.name, charset: windows-1252}",
            {"asset": {"name": "\u2192"}},
            "holds characters outside windows-1252",
        ),
        ("{to: x, from: asset.name}", {"asset": {"name": "a\x00b"}}, "holds a NUL character"),
        ("{to: x, from: asset.name}", {"asset": {"name": "\ud800"}}, "holds characters outside utf-8"),
        ("{to: x, from: asset.name}", {"asset": {"name": 7}}, "is not a text"),
        ("{to: x, from: asset.name}", {"asset": "Monks"}, "its source in the case is not an object"),
        ("{to: x, from: cubicles, type: integer}", {"cubicles": True}, "is not a whole number"),
        ("{to: x, from: cubicles, type: integer}", {"cubicles": 2**63}, "is out of the range of the column"),
        ("{to: x, from: location.easting, type: number}", {"location": {"easting": float("nan")}}, "is not a finite"),
        ("{to: x, from: location.easting, type: number}", {"location": {"easting": "1"}}, "is not a number"),
        ("{to: x, from: urgent, type: boolean}", {"urgent": 1}, "is not true or false"),
        ("{to: x, from: asset.uprn, type: integer, convert: integer}", {"asset": {"uprn": "12a"}}, "is not a whole"),
        ("{to: x, from: asset.uprn, type: integer, convert: integer}", {"asset": {"uprn": "9" * 19}}, "is out of"),
        ("{to: x, from: asset.uprn, type: number, convert: number}", {"asset": {"uprn": "1e999"}}, "is not a number"),
        (
            "{to: x, from: location.easting, type: integer, convert: integer}",
            {"location": {"easting": 1.5}},
            "is not a",
        ),
        ("{to: x, from: seen_on, type: date}", {"seen_on": "21/11/2026"}, "is not a date"),
        ("{to: x, from: seen_at, type: timestamp}", {"seen_at": "2026-07-01T23:30:00"}, "is a time without its zone"),
        ("{to: x, from: seen_at, type: timestamp}", {"seen_at": "yesterday"}, "is not a date and time"),
        (
            "{to: x, from: category, table: {litter: L, blocked: B, other: O}}",
            {"category": "mud"},
            "'mud' is not in the",
        ),
        (GRID, {"location": {"easting": -0.5, "northing": 51.5}}, "is not a point of the National Grid"),
        (GRID, {"location": {"easting": 518225.0}}, "is required and missing"),
        (
            "{to: x, from: 'tags[]', convert: {join: ', '}}",
            {"tags": ["a", 1]},
            "its source in the case holds something",
        ),
        ("{to: x, from: 'tags[]', convert: {join: ', '}, required: true}", {"tags": []}, "is required and missing"),
        ("{to: x, from: 'tags[0]'}", {"tags": "a"}, "its source in the case is not a list"),
        (
            "{to: x, from: 'notes[0].text', pii: true}",
            {"notes": ["a"]},
            "its source in the case is not a list of objects",
        ),
    ],
)
def test_a_value_that_does_not_fit_names_its_column(field: str, case: dict[str, Any], reason: str) -> None:
    """Nothing is cut, rounded or guessed: the case is rejected at the column."""
    with pytest.raises(Rejected) as caught:
        sent(field, case)
    assert caught.value.field == "x"
    assert caught.value.reason.startswith(reason)


def test_an_error_never_quotes_a_personal_value() -> None:
    """A code outside the table is shown so that someone can add it, unless the field is personal."""
    table = "table: {Ada: A}, on_error: park"
    with pytest.raises(Rejected) as caught:
        sent(f"{{to: x, from: submitter.name, pii: true, {table}}}", {"submitter": {"name": "Grace Hopper"}})
    assert "Grace" not in str(caught.value)


def test_on_error_decides_what_a_bad_value_becomes() -> None:
    """null and default go on with the case, fail stops the connector, and good values are left alone by all of them."""
    long = {"asset": {"name": "Monks Recreation Ground"}}
    field = "{{to: x, from: asset.name, max_chars: 5, default: none, on_error: {}}}"
    assert sent(field.format("default"), long) == "none"
    assert sent("{to: x, from: asset.name, max_chars: 5, on_error: null}", long) is None
    with pytest.raises(Misconfigured, match="x: is longer than 5 characters"):
        sent(field.format("fail"), long)
    for word in ("default", "null", "fail", "park"):
        assert sent(field.format(word), {"asset": {"name": "Monks"}}) == "Monks"


def test_the_columns_own_length_holds_without_a_word() -> None:
    """A varchar's length and a smallint's range are kept though the field table does not repeat them."""
    columns = {"x": Column("x", "varchar", max_chars=10), "n": Column("n", "int2")}
    mapping = compiled("{to: x, from: asset.name}\n{to: n, from: cubicles, type: integer}", columns)
    with pytest.raises(Rejected, match="x: is longer than 10 characters"):
        mapping.forward({"asset": {"name": "Lancing Park"}})
    with pytest.raises(Rejected, match="n: is out of the range of the column"):
        mapping.forward({"cubicles": 40000})


def test_an_erased_person_is_sent_as_the_defaults() -> None:
    """Nothing marked pii leaves once the key is destroyed, even when it stands in the public part."""
    mapping = compiled(
        "{to: caller, from: submitter.name, pii: true}\n"
        "{to: text, from: 'notes[].text', pii: true, convert: {join: ' '}, default: ''}\n"
        "{to: place, from: location.street, pii: true}\n"
        "{to: site, from: asset.name}"
    )
    public = {name: CASE[name] for name in ("location", "asset", "category", "status")}
    expected = {"caller": None, "text": "", "place": None, "site": "Monks Recreation Ground"}
    assert mapping.forward(public, erased=True) == expected
    assert mapping.forward(CASE, erased=True) == expected


def test_fields_of_the_event_need_the_event() -> None:
    """Reference, version and time come from the event, and their absence is a programming error, not a case's."""
    mapping = compiled("{to: ref, from: event.reference}\n{to: at, from: event.at, type: timestamp}")
    event = case_event(3)
    assert mapping.forward(CASE, event) == {"ref": "RAP-7KQ2-93XD", "at": event.at}
    with pytest.raises(TypeError, match="fields of the event"):
        mapping.forward(CASE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(CASE)), inner, max_size=4),
    max_leaves=12,
)

EVERYTHING = compiled(
    "{to: a, from: asset.name, convert: [strip, upper], max_bytes: 20}\n"
    "{to: b, from: submitter.name, pii: true, charset: latin-1, on_error: null}\n"
    "{to: c, from: category, table: {litter: L, blocked: B, other: O}, on_error: default, default: O}\n"
    "{to: d, from: [location.easting, location.northing], grid: wgs84_longitude, type: number, convert: {round: 6}}\n"
    "{to: e, from: seen_at, convert: [timestamp, {local: Europe/London}], date: '%d/%m/%Y'}\n"
    "{to: f, from: 'notes[].text', pii: true, convert: [{join: ' '}, {shorten: 50}], default: ''}\n"
    "{to: g, from: asset.uprn, type: integer, convert: integer}\n"
    "{to: h, from: urgent, type: boolean}"
)


def outcome(document: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return EVERYTHING.forward(document), None
    except Rejected as rejected:
        return None, rejected.field


@UNHURRIED
@given(st.dictionaries(st.sampled_from(sorted(CASE)), json_values, max_size=8))
def test_any_document_is_mapped_or_rejected_at_a_column(document: dict[str, Any]) -> None:
    """Whatever a document holds, the only way to fail is to name a column; and what passes keeps the limits."""
    row, rejected_at = outcome(document)
    assert rejected_at is None or rejected_at in EVERYTHING.kinds
    if row is None:
        return
    assert row["a"] is None or len(row["a"].encode()) <= 20
    assert row["c"] in {"L", "B", "O"}
    assert len(row["f"]) <= 50
    assert row["g"] is None or -(2**63) <= row["g"] < 2**63
