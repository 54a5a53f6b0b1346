"""How much a declared mapping costs against the same fourteen plain fields written by hand.

Both sides read the same case, check the same types and lengths and build the same row; they take turns, so a slow
moment of the machine meets both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams.cases.casetype import CaseType
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration
from tests.load.comparison import Comparison

EVENTS = 20_000

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


def declared() -> Mapping:
    """The mapping from a file such as a council writes."""
    rows = [f"  - {{to: {to}, from: {path}, max_chars: {longest}}}" for to, (path, longest) in _TEXTS.items()]
    rows += [f"  - {{to: {to}, from: {path}, type: number}}" for to, path in _NUMBERS.items()]
    rows.append("  - {to: cubicles, from: asset.cubicles, type: integer}")
    text = (
        "recipient: bench\ntitle: Bench\nkind: postgres\nconnection: BENCH\ntable: job\n"
        "columns: {key: ref, version: rev, id: no}\nfields:\n" + "\n".join(rows)
    )
    return Mapping.compile(RecipientDeclaration.parse(Path("bench.yaml"), text), _case_type())


def _case_type() -> CaseType:
    schema: dict[str, Any] = {"type": "object", "properties": {"status": {"enum": ["open"]}}}
    kinds = {str: "string", float: "number", int: "integer"}
    for name, value in CASE.items():
        if isinstance(value, dict):
            below = {inner: {"type": kinds[type(one)]} for inner, one in value.items()}
            schema["properties"][name] = {"type": "object", "properties": below}
        elif name != "status":
            schema["properties"][name] = {"type": "string"}
    return CaseType("bench", schema)


def measure(rounds: int) -> Comparison:
    """P10 `plain`: microseconds an event, declared against by hand; the sides take turns after a warm-up."""
    mapping = declared()
    if mapping.forward(CASE) != by_hand(CASE):
        raise AssertionError("the two sides do not do the same")
    _time(mapping.forward), _time(by_hand)
    pairs = [(_time(mapping.forward), _time(by_hand)) for _ in range(rounds)]
    return Comparison("P10", "plain", "lower", must=2.0, aim=1.2, unit="us an event", pairs=pairs)


def _time(forward: Callable[[dict[str, Any]], object]) -> float:
    case = CASE
    begun = time.perf_counter()
    for _ in range(EVENTS):
        forward(case)
    return (time.perf_counter() - begun) / EVENTS * 1e6
