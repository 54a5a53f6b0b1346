"""What a load needs to know about values and tags, as protocols: the library that defines them is passed in."""

from __future__ import annotations

import datetime as dt
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from streams.silos.names import quoted_type

# A memo field of a departmental database; a value longer than this belongs in a document, not in a lookup.
_LONGEST_TEXT = 10_000
_INT8 = 2**63
_INT4 = 2**31
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Tagger(Protocol):
    """Makes the tags of one silo's rows."""

    @property
    def definition(self) -> str: ...

    def row_tags(self, table: str, row: Mapping[str, object]) -> set[str]: ...

    def table_tag(self, table: str) -> str: ...


class ValueTypes:
    """The value types that a column may name: how each is read, and what it is in Postgres.

    A normaliser raises ValueError for a value that it cannot read, and its message does not repeat the value. To the
    types passed in this adds `long_text`, for notes: text of up to 10,000 characters that is stored but never asked by.
    """

    def __init__(self, normalisers: Mapping[str, Callable[[object], Any]], postgres_types: Mapping[str, str]) -> None:
        self._normalisers = {**normalisers, "long_text": _long_text}
        self._postgres = {name: quoted_type(kind) for name, kind in postgres_types.items()} | {"long_text": "text"}

    def __contains__(self, name: str) -> bool:
        return name in self._normalisers

    @property
    def names(self) -> list[str]:
        return sorted(self._normalisers)

    def postgres(self, name: str) -> str:
        return self._postgres[name]

    def read(self, name: str, value: object) -> Any:
        """The value as it is stored; raises ValueError with a reason that does not repeat it."""
        found = self._normalisers[name](value)
        if not _fits(found, self._postgres[name]):
            raise ValueError(f"is outside what a column of type {name} can hold")
        return found


def _long_text(value: object) -> str:
    text = unicodedata.normalize("NFC", str(value)).strip()
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"is longer than {_LONGEST_TEXT:,} characters")
    if _UNSTORABLE.search(text):
        raise ValueError("has characters that cannot be stored")
    return text


def _fits(value: object, postgres_type: str) -> bool:
    # One value that the driver cannot encode would fail the COPY of a whole chunk.
    match postgres_type:
        case "text":
            return isinstance(value, str) and not _UNSTORABLE.search(value)
        case "int8" | "int4":
            limit = _INT8 if postgres_type == "int8" else _INT4
            return isinstance(value, int) and not isinstance(value, bool) and -limit <= value < limit
        case "float8":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "date":
            return isinstance(value, dt.date) and not isinstance(value, dt.datetime)
        case _:
            return isinstance(value, bool)
