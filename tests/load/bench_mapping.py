"""How much a declared mapping costs against the same fields written by hand.

`plain` is fourteen fields as they are. `conversions` is these with a zoned date, a text that must fit a character set,
and a point of the National Grid in degrees. Both sides read the same cases, check the same types and lengths and build
the same rows; they take turns, so a slow moment of the machine meets both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyproj

from streams.cases.casetype import CaseType
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration
from tests.load.comparison import Comparison

EVENTS = 20_000
CASE_TYPE = "bench"
Forward = Callable[[dict[str, Any]], dict[str, Any]]

_TEXTS = {
    "reporter": ("submitter.name", 100),
    "telephone": ("submitter.telephone", 20),
    "email": ("submitter.email", 254),
    "street": ("location.street", 100),
    "town": ("location.town", 60),
    "postcode": ("location.postcode", 8),
    "site": ("asset.name", 120),
    "site_ref": ("asset.reference", 20),
    "category": ("category", 30),
    "summary": ("summary", 200),
    "ward": ("location.ward", 60),
}
_NUMBERS = {"easting": "location.easting", "northing": "location.northing"}

CASE: dict[str, Any] = {
    "submitter": {"name": "Ada Whitfield", "telephone": "01632 960001", "email": "ada@example.org"},
    "location": {
        "street": "Crabtree Lane",
        "town": "Lancing",
        "postcode": "BN15 9JB",
        "ward": "Mash Barn",
        "easting": 518225.5,
        "northing": 104730.25,
    },
    "asset": {"name": "Monks Recreation Ground", "reference": "PC-0017", "cubicles": 4},
    "category": "litter",
    "summary": "The bins have been full since Sunday, and the gulls are at them.",
    "status": "open",
}

# A case a place and a moment: a point that was asked for before costs neither side anything less.
CASES = [
    {
        **CASE,
        "summary": f"{CASE['summary']} Café side, £{n}.",
        "reported_at": (datetime.fromisoformat("2026-03-28T21:30:00+00:00") + timedelta(minutes=7 * n)).isoformat(),
        "location": {**CASE["location"], "easting": 500_000.5 + 20 * n, "northing": 100_000.25 + 10 * n},
    }
    for n in range(1000)
]
_LONDON = ZoneInfo("Europe/London")
_TO_DEGREES = pyproj.Transformer.from_crs(27700, 4326, always_xy=True)


class Refused(Exception):
    """What hand-written mapping code raises, naming the column."""


def by_hand(case: dict[str, Any]) -> dict[str, Any]:
    """The same row as a careful person would write it: types and lengths checked, the column named on failure."""
    submitter = case.get("submitter") or {}
    location = case.get("location") or {}
    asset = case.get("asset") or {}
    return {
        "reporter": _text("reporter", submitter.get("name"), 100),
        "telephone": _text("telephone", submitter.get("telephone"), 20),
        "email": _text("email", submitter.get("email"), 254),
        "street": _text("street", location.get("street"), 100),
        "town": _text("town", location.get("town"), 60),
        "postcode": _text("postcode", location.get("postcode"), 8),
        "site": _text("site", asset.get("name"), 120),
        "site_ref": _text("site_ref", asset.get("reference"), 20),
        "category": _text("category", case.get("category"), 30),
        "summary": _text("summary", case.get("summary"), 200),
        "ward": _text("ward", location.get("ward"), 60),
        "easting": _number("easting", location.get("easting")),
        "northing": _number("northing", location.get("northing")),
        "cubicles": _integer("cubicles", asset.get("cubicles")),
    }


def by_hand_converted(case: dict[str, Any]) -> dict[str, Any]:
    """The same with a time in London, degrees, and a summary that Windows-1252 can hold."""
    row = by_hand(case)
    try:
        row["summary"].encode("windows-1252")
    except UnicodeEncodeError:
        raise Refused("summary") from None
    row["reported"] = _local("reported", case.get("reported_at"))
    row["lat"], row["lon"] = _degrees(row["easting"], row["northing"])
    return row


def _local(column: str, value: Any) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused(column)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise Refused(column) from None
    if moment.tzinfo is None:
        raise Refused(column)
    return moment.astimezone(_LONDON).replace(tzinfo=None)


def _degrees(easting: float | None, northing: float | None) -> tuple[float | None, float | None]:
    if easting is None or northing is None:
        return None, None
    if not (0 <= easting <= 700_000 and 0 <= northing <= 1_300_000):
        raise Refused("lat")
    lon, lat = _TO_DEGREES.transform(easting, northing)
    if not (math.isfinite(lat) and math.isfinite(lon)):
        raise Refused("lat")
    return round(lat, 6), round(lon, 6)


def _text(column: str, value: Any, longest: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused(column)
    if len(value) > longest or "\0" in value:
        raise Refused(column)
    return value


def _number(column: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1.7e308 <= value <= 1.7e308:
        raise Refused(column)
    return value


def _integer(column: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise Refused(column)
    return value


_POINT = "from: [location.easting, location.northing], type: number, convert: {round: 6}"
_CONVERSIONS = (
    "  - {to: reported, from: reported_at, type: local_timestamp, convert: [timestamp, {local: Europe/London}]}",
    f"  - {{to: lat, {_POINT}, grid: wgs84_latitude}}",
    f"  - {{to: lon, {_POINT}, grid: wgs84_longitude}}",
)


def declared(*, is_converting: bool = False, is_personal: bool = False) -> Mapping:
    """The mapping from a file such as a council writes; `is_personal`: who reports is sealed, and marked so."""
    more = {"summary": ", charset: windows-1252"} if is_converting else {}
    if is_personal:
        more |= {to: ", pii: true" for to, (path, _) in _TEXTS.items() if path.startswith("submitter.")}
    rows = [
        f"  - {{to: {to}, from: {path}, max_chars: {longest}{more.get(to, '')}}}"
        for to, (path, longest) in _TEXTS.items()
    ]
    rows += [f"  - {{to: {to}, from: {path}, type: number}}" for to, path in _NUMBERS.items()]
    rows.append("  - {to: cubicles, from: asset.cubicles, type: integer}")
    rows += _CONVERSIONS if is_converting else ()
    text = (
        "recipient: bench\ntitle: Bench\nkind: postgres\nconnection: BENCH\ntable: job\n"
        "columns: {key: ref, version: rev, id: no}\nfields:\n" + "\n".join(rows)
    )
    return Mapping.compile(RecipientDeclaration.parse(Path("bench.yaml"), text), _case_type(is_personal=is_personal))


def _case_type(*, is_personal: bool) -> CaseType:
    schema: dict[str, Any] = {"type": "object", "properties": {"status": {"enum": ["open"]}}}
    kinds = {str: "string", float: "number", int: "integer"}
    for name, value in CASE.items():
        if isinstance(value, dict):
            below = {inner: {"type": kinds[type(one)]} for inner, one in value.items()}
            schema["properties"][name] = {"type": "object", "properties": below}
        elif name != "status":
            schema["properties"][name] = {"type": "string"}
    schema["properties"]["reported_at"] = {"type": "string", "format": "date-time"}
    schema["properties"]["submitter"]["x-personal"] = is_personal
    return CaseType(CASE_TYPE, schema)


def measure(rounds: int) -> list[Comparison]:
    """P10: microseconds an event, declared against by hand; the sides take turns after a warm-up."""
    plain = declared()
    converting = declared(is_converting=True)
    return [
        _compared("plain", plain.forward, by_hand, [CASE], rounds),
        _compared("conversions", converting.forward, by_hand_converted, CASES, rounds),
    ]


def _compared(name: str, ours: Forward, theirs: Forward, cases: Sequence[dict[str, Any]], rounds: int) -> Comparison:
    for case in cases:
        if ours(case) != theirs(case):
            raise AssertionError(f"{name}: the two sides do not do the same")
    _time(ours, cases), _time(theirs, cases)
    pairs = [(_time(ours, cases), _time(theirs, cases)) for _ in range(rounds)]
    return Comparison("P10", name, "lower", must=2.0, aim=1.2, unit="us an event", pairs=pairs)


def _time(forward: Forward, cases: Sequence[dict[str, Any]]) -> float:
    times = EVENTS // len(cases)
    begun = time.perf_counter()
    for _ in range(times):
        for case in cases:
            forward(case)
    return (time.perf_counter() - begun) / EVENTS * 1e6
