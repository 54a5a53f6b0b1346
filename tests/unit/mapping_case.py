"""A case type, a case and the shortest recipient that a mapping test needs around its one field."""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from pathlib import Path
from typing import Any

import pytest

from streams.cases.casetype import CaseType
from streams.declared import InvalidDeclaration
from streams.mapping.columns import Column
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration

CASE_TYPE = CaseType(
    "public-toilet-problem",
    {
        "type": "object",
        "x-reference-prefix": "RAP",
        "$defs": {"place": {"type": "object", "properties": {"ward": {"type": "string"}}}},
        "properties": {
            "submitter": {
                "x-personal": True,
                "type": "object",
                "properties": {"name": {"type": "string"}, "telephone": {"type": "string"}},
            },
            "location": {
                "type": "object",
                "properties": {
                    "easting": {"type": "number"},
                    "northing": {"type": "number"},
                    "street": {"type": "string"},
                    "town": {"type": "string"},
                },
            },
            "place": {"$ref": "#/$defs/place"},
            "asset": {"type": "object", "properties": {"uprn": {"type": "string"}, "name": {"type": "string"}}},
            "category": {"enum": ["litter", "blocked", "other"]},
            "urgent": {"type": "boolean"},
            "cubicles": {"type": "integer"},
            "seen_on": {"type": "string", "format": "date"},
            "seen_at": {"type": "string", "format": "date-time"},
            "priority": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "notes": {
                "x-personal": True,
                "type": "array",
                "items": {"type": "object", "properties": {"text": {"type": "string"}, "at": {"type": "string"}}},
            },
            "status": {"enum": ["open", "in_progress", "fixed", "no_further_action", "closed"]},
        },
    },
)

CASE: dict[str, Any] = {
    "submitter": {"name": "Ada Whitfield", "telephone": "01632 960001"},
    "location": {"easting": 518225.0, "northing": 104730, "street": "Crabtree Lane", "town": "Lancing"},
    "place": {"ward": "Mash Barn"},
    "asset": {"uprn": "60001449", "name": "Monks Recreation Ground"},
    "category": "litter",
    "urgent": True,
    "cubicles": 4,
    "seen_on": "2026-11-21",
    "seen_at": "2026-07-01T23:30:00Z",
    "tags": ["night", "smell"],
    "notes": [{"text": "Bins are full."}, {"text": "Still full."}],
    "status": "open",
}

HEAD = """recipient: street-team
title: Street team
kind: postgres
connection: SILOGATE_RECIPIENT_STREET_TEAM_URL
table: street.job
columns: {key: our_ref, version: our_version, id: job_no, modified: changed}
"""
# the line of the first row of the field table
FIRST_FIELD = HEAD.count("\n") + 2

USED = {
    "our_ref": Column("our_ref", "varchar", max_chars=20),
    "our_version": Column("our_version", "int8"),
    "job_no": Column("job_no", "int8", nullable=False, has_default=True),
    "changed": Column("changed", "timestamptz"),
}


def declared(fields: str, rest: str = "") -> RecipientDeclaration:
    """A recipient with these rows of a field table, one a line."""
    rows = "".join(f"  - {row}\n" for row in fields.splitlines())
    return RecipientDeclaration.parse(Path("street-team.yaml"), f"{HEAD}fields:\n{rows}{rest}")


def compiled(fields: str, columns: Dictionary[str, Column] | None = None, rest: str = "") -> Mapping:
    """Its mapping; `columns` are the recipient's beside those that every one has."""
    return Mapping.compile(declared(fields, rest), CASE_TYPE, None if columns is None else {**USED, **columns})


def mistakes(fields: str, columns: Dictionary[str, Column] | None = None, rest: str = "") -> list[str]:
    """What is wrong with such a recipient, as `silogate check` prints it."""
    with pytest.raises(InvalidDeclaration) as caught:
        compiled(fields, columns, rest)
    return [str(problem) for problem in caught.value.problems]


def sent(field: str, case: dict[str, Any] | None = None) -> Any:
    """What the one column `x` gets of a case."""
    return compiled(field).forward(CASE if case is None else case)["x"]
