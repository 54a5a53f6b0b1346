"""What a value must look like, and the one form in which it is compared, stored and made into tags."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from cache import grid, normalisers
from cache.normalisers import LONGEST, Malformed

__all__ = ["VALUE_TYPES", "Index", "Malformed", "Tagger", "ValueType", "canonical", "framed"]

# Part of every silo's definition: raise it whenever a normaliser gives another result for any input, so that tags and
# keys made by older code are never compared with those made by newer code.
NORMALISER_VERSION = 3


@dataclass(frozen=True, slots=True)
class ValueType:
    """A kind of value. `normalise` raises Malformed, and what it returns it accepts and returns unchanged."""

    name: str
    postgres_type: str
    normalise: Callable[[object], Any]
    json_schema: dict[str, object]


def _types() -> Mapping[str, ValueType]:
    text: dict[str, object] = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    digits: dict[str, object] = {"type": ["string", "integer"]}
    date: dict[str, object] = {"type": "string", "examples": ["2026-11-22", "22/11/2026"]}
    uprn = normalisers.identifier("malformed_uprn", "UPRN", 12)
    usrn = normalisers.identifier("malformed_usrn", "USRN", 8)
    kinds = (
        ValueType("postcode", "text", normalisers.postcode, text | {"examples": ["BN15 9JB"]}),
        ValueType("uprn", "int8", uprn, digits | {"pattern": "^[0-9]{1,12}$"}),
        ValueType("usrn", "int8", usrn, digits | {"pattern": "^[0-9]{1,8}$"}),
        _measured("easting", 0, 700_000, "an OSGB36 easting in metres"),
        _measured("northing", 0, 1_300_000, "an OSGB36 northing in metres"),
        _measured("metres", 0, 50_000, "a distance in metres"),
        _measured("latitude", grid.SOUTH, grid.NORTH, "a WGS84 latitude of Great Britain in degrees"),
        _measured("longitude", grid.WEST, grid.EAST, "a WGS84 longitude of Great Britain in degrees"),
        ValueType("text", "text", normalisers.text, text),
        ValueType("name", "text", normalisers.name, text),
        ValueType("prefix", "text", normalisers.prefix, text),
        ValueType("nino", "text", normalisers.nino, text | {"examples": ["QQ123456C"]}),
        ValueType("vehicle_mark", "text", normalisers.vehicle_mark, text | {"examples": ["AB12 CDE"]}),
        ValueType("date", "date", normalisers.date, date),
        ValueType("integer", "int8", normalisers.integer, {"type": "integer"}),
        ValueType("number", "float8", normalisers.number, {"type": "number"}),
        ValueType("boolean", "bool", normalisers.boolean, {"type": "boolean"}),
        ValueType("reference", "text", normalisers.reference, text | {"maxLength": 64}),
    )
    return MappingProxyType({kind.name: kind for kind in kinds})


def _measured(name: str, least: float, most: float, what: str) -> ValueType:
    schema: dict[str, object] = {"type": "number", "minimum": least, "maximum": most}
    return ValueType(name, "float8", normalisers.within(f"malformed_{name}", least, most, what), schema)


VALUE_TYPES: Mapping[str, ValueType] = _types()


TILE_M = 1000.0
_MOST_TILES = 64
# A name is told apart by its first letters only, so that a search by how it begins has one tag as well.
NAME_BUCKET = 2


@dataclass(frozen=True)
class Index:
    """Columns that lookups ask by. `types` are the VALUE_TYPES names of `columns`, in their order.

    `value` compares whole values; `tile` is an easting and a northing and answers what is near; `name` is one column
    and answers what begins alike.
    """

    name: str
    columns: tuple[str, ...]
    kind: Literal["value", "tile", "name"]
    types: tuple[str, ...]


class Tagger:
    """Makes the tags of one silo: hexadecimal HMACs, which say nothing of the values that they stand for.

    Two taggers make the same tags exactly when their `definition` is the same.
    """

    def __init__(self, silo: str, tables: Mapping[str, Sequence[Index]], key: bytes, key_id: str) -> None:
        self.silo = silo
        self.indexes: Mapping[str, Mapping[str, Index]] = {
            table: {index.name: index for index in indexes} for table, indexes in tables.items()
        }
        self._key = key
        self.definition = self._digest(key_id)

    def _digest(self, key_id: str) -> str:
        tables = {
            table: sorted([index.name, index.columns, index.kind, index.types] for index in indexes.values())
            for table, indexes in self.indexes.items()
        }
        made = [self.silo, tables, NORMALISER_VERSION, TILE_M, NAME_BUCKET, key_id]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]

    def table_tag(self, table: str) -> str:
        """The tag that every change to the table touches."""
        return self._tag("table", table)

    def row_tags(self, table: str, row: Mapping[str, object]) -> set[str]:
        """Every tag that a change of this row touches: the table's, and one an index.

        An index with an absent or empty column gives none, as nothing can be found by it; neither does one whose value
        cannot be read (`unreadable` names those). Never raises for what a row holds.
        """
        tags = {self.table_tag(table)}
        for index in self.indexes.get(table, {}).values():
            values = [row.get(column) for column in index.columns]
            if any(value is None for value in values):
                continue
            try:
                tags.add(self._index_tag(table, index, _normalised(index, values)))
            except Malformed:
                continue
        return tags

    def unreadable(self, table: str, row: Mapping[str, object]) -> list[str]:
        """The indexes whose value in this row cannot be normalised, so that nobody can say which answers hang on it."""
        found = []
        for index in self.indexes.get(table, {}).values():
            values = [row.get(column) for column in index.columns]
            try:
                if all(value is not None for value in values):
                    _normalised(index, values)
            except Malformed:
                found.append(index.name)
        return found

    def value_tag(self, table: str, index: str, values: Sequence[object]) -> str:
        """The tag of the rows that hold these values in that index; raises Malformed when one is not of its type."""
        return self.normal_tag(table, index, _normalised(self.indexes[table][index], values))

    def normal_tag(self, table: str, index: str, normalised: Sequence[Any]) -> str:
        """The same of values that are normalised for that index already."""
        found = self.indexes[table][index]
        if found.kind == "name" and len(normalised[0]) < NAME_BUCKET:
            # A beginning shorter than a bucket is the beginning of names in many buckets.
            return self.table_tag(table)
        return self._index_tag(table, found, normalised)

    def circle_tags(self, table: str, index: str, easting: float, northing: float, metres: float) -> list[str]:
        """The tags of every tile that the circle touches; the table's own tag when that would be too many."""
        name = self.indexes[table][index].name
        # Half a metre more than asked, so that rounding on either side can only add a tile.
        tiles = list(_tiles(easting, northing, metres + 0.5, _MOST_TILES + 1))
        if len(tiles) > _MOST_TILES:
            return [self.table_tag(table)]
        return [self._tag("tile", table, name, f"{x}:{y}") for x, y in tiles]

    def _index_tag(self, table: str, index: Index, values: Sequence[Any]) -> str:
        if index.kind == "tile":
            easting, northing = values
            return self._tag("tile", table, index.name, f"{int(easting // TILE_M)}:{int(northing // TILE_M)}")
        if index.kind == "name":
            return self._tag("name", table, index.name, values[0][:NAME_BUCKET])
        return self._tag("value", table, index.name, *map(canonical, values))

    def _tag(self, *parts: str) -> str:
        return hmac.digest(self._key, framed(self.silo, *parts), "sha256")[:16].hex()


def canonical(value: object) -> str:
    """One text for each normalised value, so that two values have the same text only when they are the same."""
    match value:
        case None:
            return "-"
        case bool():
            return f"b{int(value)}"
        case int():
            return f"i{value}"
        case float():
            return f"f{value!r}"
        case dt.date():
            return f"d{value.isoformat()}"
        case _:
            return f"s{value}"


def framed(*parts: str) -> bytes:
    """The parts as bytes, each after its length: no two lists of parts give the same bytes."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def _normalised(index: Index, values: Sequence[object]) -> list[Any]:
    return [VALUE_TYPES[kind].normalise(value) for kind, value in zip(index.types, values, strict=True)]


def _tiles(easting: float, northing: float, metres: float, most: int) -> Iterator[tuple[int, int]]:
    """Tiles with a point at most `metres` away; gives up after `most`."""
    count = 0
    for x in range(int((easting - metres) // TILE_M), int((easting + metres) // TILE_M) + 1):
        across = max(x * TILE_M - easting, easting - (x + 1) * TILE_M, 0.0)
        for y in range(int((northing - metres) // TILE_M), int((northing + metres) // TILE_M) + 1):
            up = max(y * TILE_M - northing, northing - (y + 1) * TILE_M, 0.0)
            if across * across + up * up > metres * metres:
                continue
            yield x, y
            count += 1
            if count >= most:
                return
