"""Names that reach SQL: validated and quoted here and nowhere else."""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-z][a-z0-9_]*")

# Postgres cuts identifiers at 63 bytes without an error; an index's name holds a table's and its own.
LONGEST_TABLE = 24
LONGEST_COLUMN = 59

# Tables of every silo's schema; a declared table may not take their names.
CANARY = "silogate_canary"
BOOKKEEPING = ("progress", "change_log", "load", "reject", CANARY)

# What a value type may be in Postgres, and what the catalogue calls it.
POSTGRES_TYPES = {
    "text": "text",
    "int4": "integer",
    "int8": "bigint",
    "float8": "double precision",
    "date": "date",
    "bool": "boolean",
}


def fault(name: str, longest: int = LONGEST_COLUMN) -> str | None:
    """Why `name` cannot be an identifier, or None when it can."""
    if not _NAME.fullmatch(name):
        return "must be lower-case letters, digits and underscores, beginning with a letter"
    return f"is longer than {longest} characters" if len(name) > longest else None


def quoted(name: str) -> str:
    """The name as SQL; raises ValueError for anything that is not a plain identifier."""
    if (wrong := fault(name.removeprefix("_"))) is not None:
        raise ValueError(f"{name!r} {wrong}")
    return f'"{name}"'


def schema_of(silo: str) -> str:
    """The name of a silo's schema, unquoted."""
    return f"silo_{silo}"


def quoted_type(postgres_type: str) -> str:
    """The type as SQL; raises ValueError for one that no value type may have."""
    if postgres_type not in POSTGRES_TYPES:
        raise ValueError(f"{postgres_type!r} is not a type that a silo column may have")
    return postgres_type
