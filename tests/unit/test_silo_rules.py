"""Column rules: what becomes of one row of text."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from cache.values import VALUE_TYPES
from streams.silos import SchemaDrift, SiloDeclaration, ValueTypes
from streams.silos.rules import Reading, TableRules

TYPES = ValueTypes(
    {name: kind.normalise for name, kind in VALUE_TYPES.items()},
    {name: kind.postgres_type for name, kind in VALUE_TYPES.items()},
)
DECLARED = """\
silo: lamps
title: Street lamps
owner: Highways
max_age: 36h
source: {kind: csv, path: lamps.csv}
tables:
  lamp:
    key: [uprn]
    personal: [keeper, Telephone]
    columns:
      uprn: {from: UPRN, type: uprn}
      easting: {from: X, type: easting, required: true}
      northing: {from: Y, type: northing, required: true}
      kind: {from: Kind, one_of: [LED, "Sodium, low pressure"], default: led}
      seen: {from: Seen, type: date, pattern: '(?P<value>\\d+/\\d+/\\d+)( \\d+:\\d+)?', must: be D/M/YYYY}
      keeper: {from: {by: ", ", join: [Surname, {by: "-", join: [From, To]}]}}
    grid: {easting: X_is_ignored, northing: northing, system: System, default: WGS84}
    checks:
      Telephone: {pattern: '[0-9 ]+', must: be a telephone number}
"""
HEADER = ["UPRN", "X", "Y", "Kind", "Seen", "Surname", "From", "To", "System", "Telephone"]
ROW = {"UPRN": "60001449", "X": "518072", "Y": "103649", "System": "OSGB36"}


def rules(header: list[str] | None = None) -> TableRules:
    text = DECLARED.replace("X_is_ignored", "easting")
    table = SiloDeclaration.parse(text, Path("silo.yaml"), TYPES).tables["lamp"]
    return TableRules(table, header or HEADER, TYPES, encoding="utf-8", where="lamps.csv")


def read(**cells: str) -> Reading:
    row = ROW | cells
    return rules().read([row.get(heading, "") for heading in HEADER])


def reasons(reading: Reading) -> list[tuple[str, str]]:
    return [(fault.heading, fault.reason) for fault in reading.faults]


def test_a_good_row_is_read_into_typed_values() -> None:
    """Each column has the value of its type; an empty one that may be empty is null."""
    reading = read(Seen="7/7/2014 09:30", Surname=" Exampleson ", From="12A", To="14")
    assert reading.faults == []
    assert reading.values == {
        "uprn": 60001449,
        "easting": 518072.0,
        "northing": 103649.0,
        "kind": "LED",
        "seen": dt.date(2014, 7, 7),
        "keeper": "Exampleson, 12A-14",
    }
    assert read().values["keeper"] is None


def test_a_list_is_compared_without_case_and_stored_as_declared() -> None:
    """`LED`, `led` and ` Led ` are one value; so are runs of spaces."""
    assert read(Kind=" led ").values["kind"] == "LED"
    assert read(Kind="SODIUM,  LOW PRESSURE").values["kind"] == "Sodium, low pressure"
    assert reasons(read(Kind="Gas")) == [("Kind", "is not one of: LED, Sodium, low pressure")]


def test_every_reason_is_told() -> None:
    """A row with four mistakes has four reasons, one a column."""
    reading = read(UPRN="", Kind="Gas", Seen="2014-07-07", Telephone="none")
    assert [heading for heading, _ in reasons(reading)] == ["UPRN", "Kind", "Seen", "Telephone"]
    assert reasons(reading)[0][1] == "is empty, and it is required"
    assert reasons(reading)[2][1] == "must be D/M/YYYY"


def test_a_refused_row_still_says_what_it_puts_in_doubt() -> None:
    """What can be read of a refused row is read; what cannot is named as unread."""
    reading = read(Kind="Gas", Seen="31/02/2014")
    assert reading.values["uprn"] == 60001449
    assert reading.unread == {"kind", "seen"}
    assert read(UPRN="not a number").unread == {"uprn"}


@pytest.mark.parametrize("text", ["Zo\udce9", "a\x00b"])
def test_what_cannot_be_stored_is_a_reason(text: str) -> None:
    """Bytes outside the encoding and NUL characters refuse their row only."""
    assert len(read(Surname=text).faults) == 1
    assert "keeper" in read(Surname=text).unread


def test_faults_of_personal_headings_are_marked() -> None:
    """A value of a personal column, or of a personal check, is never to be shown; that of another may be."""
    marked = {fault.heading: fault.personal for fault in read(Surname="\udce9", Telephone="x", Kind="Gas").faults}
    assert marked == {"Surname + From + To": True, "Telephone": True, "Kind": False}


def test_a_point_in_degrees_becomes_a_point_in_metres() -> None:
    """A row in WGS84, by name or by default, is stored as OSGB36 (within the accuracy of the conversion)."""
    for system in ("WGS84", "wgs84", ""):
        reading = read(X="-0.3244", Y="50.8199", System=system)
        assert reading.faults == []
        assert reading.values["easting"] == pytest.approx(518136, abs=60)
        assert reading.values["northing"] == pytest.approx(103576, abs=60)


@pytest.mark.parametrize(
    ("cells", "heading", "reason", "readable"),
    [
        ({"System": "OSGB3"}, "System", "is not one of: WGS84, OSGB36", True),
        ({"System": ""}, "X", "is not a longitude, but the row names no reference system, which means WGS84", True),
        ({"System": "WGS84"}, "X", "is not a longitude, but the row says WGS84", True),
        ({"X": "-0.3244", "Y": "50.8199"}, "X", "looks like a longitude, but the row says OSGB36", True),
        ({"X": "2.35", "Y": "48.86", "System": "WGS84"}, "X", "is not in Great Britain", False),
        ({"X": "TQ180036"}, "X", "is not a number", False),
        ({"Y": ""}, "Y", "is empty, and it is required", False),
        ({"X": "718072"}, "X", "is not an OSGB36 easting in metres from 0 to 700,000", False),
    ],
)
def test_a_point_in_the_wrong_system_is_refused(
    cells: dict[str, str], heading: str, reason: str, readable: bool
) -> None:
    """No number is taken for metres because it happens to fit; a point that can still be told apart stays readable."""
    reading = read(**cells)
    assert reasons(reading) == [(heading, reason)]
    assert ("easting" in reading.values) is readable


def test_a_heading_that_is_gone_fails_closed() -> None:
    """A renamed column is named, with the new headings that might be it."""
    with pytest.raises(SchemaDrift, match=r"lamps.csv has no column Kind; it has Lamp kind, which silo.yaml"):
        rules(["Lamp kind" if heading == "Kind" else heading for heading in HEADER])


def test_headings_that_nobody_asks_for_are_no_matter() -> None:
    """A new column in the source changes nothing until silo.yaml names it."""
    wider = rules([*HEADER, "Colour"]).read([*(ROW.get(heading, "") for heading in HEADER), "green"])
    assert wider == read()


def test_half_a_point_is_refused_and_named() -> None:
    """One coordinate without the other is a reject with a reason, also where both may be empty; none is no fault."""
    text = DECLARED.replace("X_is_ignored", "easting").replace(", required: true}", "}")
    table = SiloDeclaration.parse(text, Path("silo.yaml"), TYPES).tables["lamp"]
    loose = TableRules(table, HEADER, TYPES, encoding="utf-8", where="lamps.csv")
    row = ROW | {"Y": ""}
    half = loose.read([row.get(heading, "") for heading in HEADER])
    assert reasons(half) == [("Y", "is empty, though the other coordinate is there")]
    row |= {"X": ""}
    assert reasons(loose.read([row.get(heading, "") for heading in HEADER])) == []


def test_what_a_rewriting_rule_refuses_counts_as_unreadable() -> None:
    """Nobody can say which stored value was meant, so it is not taken for the refused text."""
    assert "kind" in read(Kind="Gas").unread
    assert "seen" in read(Seen="in July").unread
