"""A lookup's YAML: what it may say, and the sentence for each thing that it may not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cache.answer import Answer, AsOf
from cache.values import Index, Tagger
from gateway.lookup import Lookup
from gateway.lookup_files import read_lookup
from gateway.problems import Problem
from streams.declared import InvalidDeclaration

TAGGER = Tagger(
    "town",
    {
        "toilet": (
            Index("uprn", ("uprn",), "value", ("uprn",)),
            Index("tile", ("easting", "northing"), "tile", ("easting", "northing")),
            Index("street", ("street_name",), "name", ("name",)),
        )
    },
    b"t" * 32,
    "1",
)
SOUND = """\
lookup: toilets
title: Toilets
silo: town
parameters:
  uprn: {type: uprn, title: UPRN, example: "60002210"}
sql: toilets.sql
shape: many
columns: [uprn]
tags:
  toilet: {index: uprn, from: [uprn]}
scope: lookups:toilets
ttl: 6h
soft_ttl: 1h
negative_ttl: 5m
stale_for: 7d
cache_control: private, max-age=60
"""
NEAR = (
    SOUND.replace('  uprn: {type: uprn, title: UPRN, example: "60002210"}\n', """\
  latitude: {type: latitude, title: Latitude, example: 50.8}
  longitude: {type: longitude, title: Longitude, example: -0.3}
  metres: {type: metres, title: How far, example: 100, maximum: 3000}
grid: {latitude: latitude, longitude: longitude, easting: easting, northing: northing}
""").replace("{index: uprn, from: [uprn]}", "{circle: tile, easting: easting, northing: northing, metres: metres}")
)  # fmt: skip
NEAR_SQL = "select uprn from toilet where :easting + :northing + :metres > 0"
SQL = "select uprn from toilet where uprn = :uprn"
CASES_SQL = "select 1 as uprn from cases where reference = (:uprn)::text"


class Nobody:
    """Never asked by these tests."""

    async def answer(self, parameters: Mapping[str, Any], *, timeout_s: float, min_as_of: AsOf | None = None) -> Answer:
        raise AssertionError("nothing is asked here")


def declared(folder: Path, text: str = SOUND, sql: str = SQL, cases: str = CASES_SQL) -> Any:
    (folder / "toilets.sql").write_text(sql)
    (folder / "toilets.cases.sql").write_text(cases)
    (folder / "toilets.yaml").write_text(text)
    return read_lookup(folder / "toilets.yaml", TAGGER)


def lookup(folder: Path, text: str, sql: str, today: Callable[[], dt.date] = dt.date.today) -> Lookup:
    return Lookup(declared(folder, text, sql), Nobody(), lambda *_: b"", today=today)


REFUSED = {
    "a negative life longer than any": ("negative_ttl: 5m", "negative_ttl: 7h", "negative_ttl: must be more than 0s"),
    "a negative life of nothing": ("negative_ttl: 5m", "negative_ttl: 0s", "negative_ttl: must be more than 0s"),
    "a soft life longer than the whole": ("soft_ttl: 1h", "soft_ttl: 7h", "soft_ttl: must be more than 0s"),
    "lives that no tag outlasts": ("stale_for: 7d", "stale_for: 8d", "longer than 8 days"),
    "an age of nothing": ("ttl: 6h", "ttl: 6h\nmax_age: 0s", "max_age: must be more than 0s"),
    "a directive that is none": ("max-age=60", "maxage=60", "cache_control: is not a list of directives"),
    "a directive without its seconds": ("max-age=60", "max-age", "cache_control: is not a list of directives"),
    "seconds that are none": ("max-age=60", "max-age=-1", "cache_control: is not a list of directives"),
    "a header inside": ("max-age=60", 'max-age=60"\n#', "cache_control: is not a list of directives"),
    "a directive twice": ("max-age=60", "max-age=60, max-age=6", "cache_control: says max-age twice"),
    "public and private": ("private,", "private, public,", "cannot be both public and private"),
    "public and never stored": ("private, max-age=60", "public, no-store", "cannot be both public and no-store"),
    "a personal answer that is stored": ("ttl: 6h", "ttl: 6h\npersonal: true", "a personal answer needs no-store"),
    "a rate class that is none": ("ttl: 6h", "ttl: 6h\nrate: slow", "rate: is not a rate class; there are: lookup,"),
    "a rate class of streams": ("ttl: 6h", "ttl: 6h\nrate: stream", "rate: is not a rate class"),
    "cases that are stored": ("ttl: 6h", "ttl: 6h\ncases: toilets.cases.sql", "an answer over cases needs no-store"),
    "cases that are not there": ("ttl: 6h", "ttl: 6h\ncases: gone.sql", "cases: names gone.sql"),
    "a default that is never used": ("example:", "default: 7, example:", "default: is never used"),
    "a default that is malformed": ("example:", "required: false, default: x, example:", "default: is not a UPRN"),
    "today for a number": ("example:", "required: false, default: today, example:", "default: is not a UPRN"),
    "an example below the minimum": ("example:", "minimum: 99999999, example:", "example: is less than 99999999"),
    "a grid of nothing": ("sql:", "grid: {latitude: a, longitude: b, easting: e, northing: n}\nsql:", "grid.latitude:"),
    "a column that could be SQL": ("columns: [uprn]", 'columns: ["uprn; drop"]', "columns.0: "),
    "a parameter that could be SQL": ("  uprn: {", '  "u prn": {', "parameters.u prn"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_policy_that_cannot_be_kept_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    """The sentence names the field."""
    assert old in SOUND
    with pytest.raises(InvalidDeclaration) as caught:
        declared(tmp_path, SOUND.replace(old, new, 1))
    assert says in str(caught.value)


def test_a_sound_policy_reaches_the_lookup(tmp_path: Path) -> None:
    """Without a negative life an absence is kept as long as a find; the rate class is the common one."""
    found = declared(tmp_path, SOUND.replace("negative_ttl: 5m\n", "").replace("ttl: 6h", "ttl: 6h\nmax_age: 1d"))
    definition = found.definition
    assert (definition.ttl_s, definition.negative_ttl_s, definition.max_age_s) == (21_600, 21_600, 86_400)
    assert (found.rate, found.cases, found.grid) == ("lookup", None, None)


def test_a_joined_lookup_asks_the_cases_with_the_same_parameters(tmp_path: Path) -> None:
    """The second SQL is over cases, in the same shape and columns, and is never kept."""
    text = SOUND.replace("ttl: 6h", "ttl: 6h\ncases: toilets.cases.sql").replace("private, max-age=60", "no-store")
    found = declared(tmp_path, text)
    assert found.cases.silo == "cases"
    assert found.cases.parameters == found.definition.parameters
    assert (found.cases.ttl_s, found.cases.tags, found.cases.columns) == (0, {}, ("uprn",))
    with pytest.raises(InvalidDeclaration) as caught:
        declared(tmp_path, text, cases="delete from cases where reference = :uprn")
    assert "toilets.cases.sql:1: a lookup is one SELECT" in str(caught.value)


def test_a_lookup_over_cases_keeps_nothing_and_has_no_policy_of_keeping(tmp_path: Path) -> None:
    """No tags, no lives and no clients that store."""
    text = SOUND.replace("silo: town", "silo: cases")
    with pytest.raises(InvalidDeclaration) as caught:
        declared(tmp_path, text, CASES_SQL)
    said = str(caught.value)
    for field in ("tags", "ttl", "soft_ttl", "negative_ttl", "stale_for", "cache_control"):
        assert f" {field}: " in said


def test_a_point_in_degrees_reaches_the_sql_in_metres(tmp_path: Path) -> None:
    """The caller gives latitude and longitude; the SQL, its tags and its key know easting and northing."""
    asked = lookup(tmp_path, NEAR, NEAR_SQL)
    assert list(asked.declaration.definition.parameters) == ["easting", "northing", "metres"]
    assert list(asked.declaration.parameters) == ["latitude", "longitude", "metres"]
    found = asked.parameters_of({"latitude": "52.658007842", "longitude": 1.716073972, "metres": 10})
    assert found == {"easting": 651_411.0, "northing": 313_181.0, "metres": 10.0}


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"latitude": 48.85, "longitude": 0}, "malformed_latitude", "latitude"),
        ({"latitude": 52, "longitude": 2.35}, "malformed_longitude", "longitude"),
        ({"latitude": 49.8, "longitude": -9}, "malformed_longitude", "longitude"),
        ({"latitude": 49.75, "longitude": 1.9}, "malformed_latitude", "latitude"),
        ({"latitude": 52}, "missing_parameter", "longitude"),
        ({"latitude": 52, "longitude": 0, "easting": 1}, "unknown_parameter", "easting"),
    ],
)
def test_a_point_outside_great_britain_is_refused_by_its_field(
    tmp_path: Path, given: dict[str, object], code: str, field: str
) -> None:
    """Also what passes for a number on its own and lies off the grid, and the SQL's own names."""
    with pytest.raises(Problem) as caught:
        lookup(tmp_path, NEAR, NEAR_SQL).parameters_of({"metres": 10, **given})
    assert (caught.value.code, caught.value.field) == (code, field)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("latitude: latitude", "latitude: longitude", "grid.latitude: must name a required parameter of type latitude"),
        ("type: latitude", "required: false, type: latitude", "grid.latitude: must name a required parameter"),
        ("northing: northing}\nsql", "northing: metres}\nsql", "grid.northing: must be a name of its own"),
        ("northing: northing}\nsql", "northing: easting}\nsql", "grid.northing: must be a name of its own"),
    ],
)
def test_a_grid_that_cannot_be_made_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Each of its four names has its place."""
    assert old in NEAR
    with pytest.raises(InvalidDeclaration) as caught:
        declared(tmp_path, NEAR.replace(old, new, 1), NEAR_SQL)
    assert says in str(caught.value)


TODAY_SQL = "select uprn from toilet where :uprn > 0 and :today > '2026-01-01'"
WITH_TODAY = SOUND.replace("sql:", "  today: {type: date, title: Today, example: 2026-11-22, required: false, "
                           "default: today}\nsql:", 1)  # fmt: skip


def test_today_is_the_day_of_the_question(tmp_path: Path) -> None:
    """It changes at midnight in London, and with it the question; a caller may name another day."""
    days = iter([dt.date(2026, 6, 30), dt.date(2026, 7, 1)])
    asked = lookup(tmp_path, WITH_TODAY.replace("2026-11-22", '"2026-11-22"'), TODAY_SQL, today=lambda: next(days))
    assert [asked.parameters_of({"uprn": 1})["today"] for _ in range(2)] == [dt.date(2026, 6, 30), dt.date(2026, 7, 1)]
    assert asked.parameters_of({"uprn": 1, "today": "25/12/2026"})["today"] == dt.date(2026, 12, 25)
    with pytest.raises(Problem):
        asked.parameters_of({"uprn": 1, "today": "today"})


def test_a_beginning_has_a_least_length(tmp_path: Path) -> None:
    """Counted in its normal form: spaces around it are no characters."""
    text = SOUND.replace(
        'uprn: {type: uprn, title: UPRN, example: "60002210"}',
        "street: {type: prefix, title: Street, example: Cra, minimum: 2, maximum: 40}",
    )
    text = text.replace("{index: uprn, from: [uprn]}", "{index: street, from: [street]}")
    sql = 'select uprn from toilet where street_name collate "C" >= :street and street_name collate "C" < :street_below'
    asked = lookup(tmp_path, text, sql)
    assert asked.parameters_of({"street": " CRA "}) == {"street": "cra"}
    for short in (" c ", "\N{ZERO WIDTH SPACE}c", "x" * 41):
        with pytest.raises(Problem) as caught:
            asked.parameters_of({"street": short})
        assert (caught.value.code, caught.value.field) == ("malformed_prefix", "street")
    schema = asked.declaration.parameters["street"].type.json_schema
    assert (schema["minLength"], schema["maxLength"]) == (2, 40)
