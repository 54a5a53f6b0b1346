"""What a value must look like, and the one form in which it is compared, stored and made into tags."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal

# Part of every silo's definition: raise it whenever a normaliser gives another result for any input, so that tags and
# keys made by older code are never compared with those made by newer code.
NORMALISER_VERSION = 1

_LONGEST = 256
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


class Malformed(ValueError):
    """A value that is not what its type says. The message names the rule that it broke and never repeats the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ValueType:
    """A kind of value. `normalise` raises Malformed, and what it returns it accepts and returns unchanged."""

    name: str
    postgres_type: str
    normalise: Callable[[object], Any]
    json_schema: dict[str, object]


def _characters(value: object, code: str) -> str:
    if not isinstance(value, str):
        raise Malformed(code, "must be text")
    if len(value) > _LONGEST:
        raise Malformed(code, f"is longer than {_LONGEST} characters")
    if _UNUSABLE.search(value):
        raise Malformed(code, "has a character that cannot be stored")
    return value


def _text(value: object) -> str:
    found = unicodedata.normalize("NFC", _characters(value, "malformed_text")).strip()
    if not found:
        raise Malformed("malformed_text", "is empty")
    return found


def _name(value: object) -> str:
    # NFKC after casefold once more: casefold alone may leave a form that NFKC would change.
    folded = unicodedata.normalize("NFKC", _characters(value, "malformed_name")).casefold()
    found = " ".join(unicodedata.normalize("NFKC", folded).split())
    if not found:
        raise Malformed("malformed_name", "is empty")
    return found


def _compact(value: object, code: str) -> str:
    """Upper case in plain digits and letters, without the spaces, dots and hyphens people put between groups."""
    plain = unicodedata.normalize("NFKC", _characters(value, code)).upper()
    return re.sub(r"[\s.\-\u2010-\u2015]+", "", plain)


_POSTCODE = re.compile(r"([A-Z]{1,2}[0-9][0-9A-Z]?|GIR|[A-Z]{4})([0-9][ABD-HJLNP-UW-Z]{2})")


def _postcode(value: object) -> str:
    found = _POSTCODE.fullmatch(_compact(value, "malformed_postcode"))
    if found is None:
        raise Malformed("malformed_postcode", "is not a full UK postcode such as BN15 9JB")
    return f"{found[1]} {found[2]}"


def _nino(value: object) -> str:
    found = _compact(value, "malformed_nino")
    if not re.fullmatch(r"[A-Z]{2}[0-9]{6}[A-D]", found):
        raise Malformed("malformed_nino", "is not a National Insurance number such as QQ123456C")
    return found


def _reference(value: object) -> str:
    found = unicodedata.normalize("NFKC", _characters(value, "malformed_reference")).strip().upper()
    if not re.fullmatch(r"[A-Z0-9][A-Z0-9/._-]{0,63}", found):
        raise Malformed("malformed_reference", "is not a reference of up to 64 letters, digits, hyphens and slashes")
    return found


def _whole(value: object, code: str, message: str) -> int:
    if isinstance(value, str):
        plain = unicodedata.normalize("NFKC", _characters(value, code)).strip()
        if re.fullmatch(r"[+-]?[0-9]{1,19}", plain):
            return int(plain)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    elif isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return int(value)
    raise Malformed(code, message)


def _identifier(code: str, title: str, digits: int) -> Callable[[object], int]:
    message = f"is not a {title} of up to {digits} digits"

    def normalise(value: object) -> int:
        found = _whole(value, code, message)
        if not 0 < found < 10**digits:
            raise Malformed(code, message)
        return found

    return normalise


def _integer(value: object) -> int:
    found = _whole(value, "malformed_integer", "is not a whole number")
    if not -(2**63) <= found < 2**63:
        raise Malformed("malformed_integer", "is out of range")
    return found


def _float(value: object, code: str) -> float:
    try:
        if isinstance(value, str):
            plain = unicodedata.normalize("NFKC", _characters(value, code)).strip()
            # float() alone also takes 1_000, inf and nan.
            found = float(plain) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", plain) else math.nan
        elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            found = float(value)
        else:
            found = math.nan
    except OverflowError:
        found = math.nan
    if not math.isfinite(found):
        raise Malformed(code, "is not a number")
    return found + 0.0  # -0.0 and 0.0 are one value


def _number(value: object) -> float:
    return _float(value, "malformed_number")


def _metres_within(code: str, least: float, most: float, what: str) -> Callable[[object], float]:
    def normalise(value: object) -> float:
        found = _float(value, code)
        if not least <= found <= most:
            raise Malformed(code, f"is not {what} in metres from {least:,.0f} to {most:,.0f}")
        return found

    return normalise


_DAY_FIRST = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})")
_YEAR_FIRST = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")


def _date(value: object) -> dt.date:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    plain = unicodedata.normalize("NFKC", _characters(value, "malformed_date")).strip()
    try:
        if found := _YEAR_FIRST.fullmatch(plain):
            return dt.date(int(found[1]), int(found[2]), int(found[3]))
        if found := _DAY_FIRST.fullmatch(plain):
            return dt.date(int(found[3]), int(found[2]), int(found[1]))
    except ValueError:
        raise Malformed("malformed_date", "is not a day of the calendar") from None
    raise Malformed("malformed_date", "is not a date such as 2026-11-22 or 22/11/2026")


_TRUTH = {"true": True, "yes": True, "y": True, "t": True, "1": True, "on": True}
_TRUTH |= {"false": False, "no": False, "n": False, "f": False, "0": False, "off": False}


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    found = _TRUTH.get(_characters(value, "malformed_boolean").strip().casefold())
    if found is None:
        raise Malformed("malformed_boolean", "is not yes or no")
    return found


def _types() -> Mapping[str, ValueType]:
    text: dict[str, object] = {"type": "string", "minLength": 1, "maxLength": _LONGEST}
    easting = _metres_within("malformed_easting", 0, 700_000, "an OSGB36 easting")
    northing = _metres_within("malformed_northing", 0, 1_300_000, "an OSGB36 northing")
    metres = _metres_within("malformed_metres", 0, 50_000, "a distance")
    digits: dict[str, object] = {"type": ["string", "integer"]}
    kinds = (
        ValueType("postcode", "text", _postcode, text | {"examples": ["BN15 9JB"]}),
        ValueType("uprn", "int8", _identifier("malformed_uprn", "UPRN", 12), digits | {"pattern": "^[0-9]{1,12}$"}),
        ValueType("usrn", "int8", _identifier("malformed_usrn", "USRN", 8), digits | {"pattern": "^[0-9]{1,8}$"}),
        ValueType("easting", "float8", easting, {"type": "number", "minimum": 0, "maximum": 700_000}),
        ValueType("northing", "float8", northing, {"type": "number", "minimum": 0, "maximum": 1_300_000}),
        ValueType("metres", "float8", metres, {"type": "number", "minimum": 0, "maximum": 50_000}),
        ValueType("text", "text", _text, text),
        ValueType("name", "text", _name, text),
        ValueType("nino", "text", _nino, text | {"examples": ["QQ123456C"]}),
        ValueType("date", "date", _date, {"type": "string", "examples": ["2026-11-22", "22/11/2026"]}),
        ValueType("integer", "int8", _integer, {"type": "integer"}),
        ValueType("number", "float8", _number, {"type": "number"}),
        ValueType("boolean", "bool", _boolean, {"type": "boolean"}),
        ValueType("reference", "text", _reference, text | {"maxLength": 64}),
    )
    return MappingProxyType({kind.name: kind for kind in kinds})


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
        found = self.indexes[table][index]
        normalised = _normalised(found, values)
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

    def _index_tag(self, table: str, index: Index, values: list[Any]) -> str:
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
