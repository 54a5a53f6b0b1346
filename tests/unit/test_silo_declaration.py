"""silo.yaml: what it may say, and how each mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.values import VALUE_TYPES, Index
from streams.silos import InvalidSilo, SiloDeclaration, ValueTypes

TYPES = ValueTypes(
    {name: kind.normalise for name, kind in VALUE_TYPES.items()},
    {name: kind.postgres_type for name, kind in VALUE_TYPES.items()},
)
SILOS = Path(__file__).resolve().parents[2] / "deploy" / "silos"
GOOD = """\
silo: lamps
title: Street lamps
owner: Highways
max_age: 36h
source:
  kind: csv
  path: lamps.csv
tables:
  lamp:
    key: [column_no]
    columns:
      column_no: {from: "Column No", type: reference}
      easting: {from: E, type: easting}
      northing: {from: N, type: northing}
    indexes:
      column_no: {columns: [column_no], kind: value}
      tile: {columns: [easting, northing], kind: tile}
"""


def parse(text: str) -> SiloDeclaration:
    return SiloDeclaration.parse(text, Path("deploy/silos/lamps/silo.yaml"), TYPES)


def problem_of(text: str) -> str:
    with pytest.raises(InvalidSilo) as caught:
        parse(text)
    assert len(caught.value.problems) == 1, str(caught.value)
    return str(caught.value.problems[0])


@pytest.mark.parametrize("name", ["assets", "addresses", "claims"])
def test_the_silos_of_the_demo_are_valid(name: str) -> None:
    """Each silo.yaml that comes with the project can be read, and its folder has its name."""
    path = SILOS / name / "silo.yaml"
    assert SiloDeclaration.parse(path.read_text(encoding="utf-8"), path, TYPES).silo == name


def test_what_a_silo_means_when_it_says_little() -> None:
    """Defaults are the careful ones: rejects are doubtful, and a tenth of a table is the most one load may remove."""
    silo = parse(GOOD)
    assert silo.max_age_s == 36 * 3600
    assert not silo.rejects_tolerated
    assert silo.deletions.guard_percent == 10
    assert silo.source.encoding == "utf-8"
    assert silo.schema_name == "silo_lamps"


def test_indexes_carry_the_types_that_tags_are_made_with() -> None:
    """An index is given to the tag maker field by field, with the value type of each column."""
    found = [Index(i.name, i.columns, i.kind, i.types) for i in parse(GOOD).indexes()["lamp"]]
    assert found == [
        Index("column_no", ("column_no",), "value", ("reference",)),
        Index("tile", ("easting", "northing"), "tile", ("easting", "northing")),
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("max_age: 36h", "max_age: 36"), ":4: max_age: 36 is not a duration"),
        (("max_age: 36h", "max_age: 0h"), ":4: max_age: Input should be greater than 0"),
        (("owner: Highways", "owner: Highways\nshedule: nightly"), ":4: shedule: is not a field here"),
        (("kind: csv", "kind: access"), ":6: source.kind:"),
        (("path: lamps.csv", "path: lamps.csv\n  encoding: klingon"), ":8: source.encoding:"),
        (("silo: lamps", "silo: Street-Lamps"), ":1: silo: must be lower-case letters"),
        (("  lamp:", "  load:"), ":9: tables.load: is the name of a table that every silo has"),
        (("key: [column_no]", "key: [lamp_no]"), ":10: tables.lamp.key.0: lamp_no is not one of"),
        (("type: reference", "type: referense"), ":12: tables.lamp.columns.column_no.type: 'referense' is not"),
        (("type: reference", "patern: x"), ":12: tables.lamp.columns.column_no.patern: is not a field here"),
        (("type: reference", "pattern: '['"), ":12: tables.lamp.columns.column_no.pattern: is not a regular"),
        (("type: reference", "must: be so"), ":12: tables.lamp.columns.column_no.must: says what a pattern wants"),
        (
            ("[easting, northing], kind: tile", "[northing, easting], kind: tile"),
            ":17: tables.lamp.indexes.tile.columns:",
        ),
        (
            ("columns: [column_no], kind", "columns: [no], kind"),
            ":16: tables.lamp.indexes.column_no.columns: no is not",
        ),
        (("    indexes:", "    personal: [keeper]\n    indexes:"), ":15: tables.lamp.personal.0: keeper is not one of"),
        (("      easting: {", '      "E; drop": {from: E}\n      easting: {'), ":13: tables.lamp.columns.E; drop:"),
    ],
)
def test_each_mistake_is_named_by_line_and_field(change: tuple[str, str], problem: str) -> None:
    """A wrong silo.yaml is refused with the line and the field of what is wrong."""
    assert problem in problem_of(GOOD.replace(*change))


def test_all_mistakes_are_told_at_once() -> None:
    """Whoever wrote three mistakes learns of three."""
    text = GOOD.replace("key: [column_no]", "key: [a, b]").replace("type: reference", "type: referense")
    with pytest.raises(InvalidSilo) as caught:
        parse(text)
    assert [problem.line for problem in caught.value.problems] == [10, 10, 12]


def test_names_that_could_not_be_identifiers_never_reach_sql() -> None:
    """Table, column and index names are plain identifiers or the declaration is refused."""
    for name in ("a b", 'a"b', "A", "1a", "_a", "ä", "a" * 60):
        assert "columns" in problem_of(
            GOOD.replace("      northing: {", f"      '{name}': {{from: X}}\n      northing: {{")
        )
