"""The contract of a case type: what its schema was when it was last accepted, kept beside it and under review.

`silogate check --accept` writes it and refuses a change that breaks it. To break it all the same is another case type:
another name in integration.yaml; the lock of the earlier name then says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.cases.casetype import CaseType, pointer
from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.evolution import breaks, contract

_SUFFIX = ".lock.json"


@dataclass(frozen=True, slots=True)
class Compared:
    """`broken` stops everything; `unaccepted` only the check: the schema may follow, but nobody has said so yet."""

    broken: list[Problem]
    unaccepted: list[Problem]


def lock_of(schema: Path) -> Path:
    """Name the lock of a schema file: case.schema.json has case.schema.lock.json."""
    return schema.with_name(schema.name.removesuffix(".json") + _SUFFIX)


def compare(schema: Path, case_type: CaseType) -> Compared:
    """Hold a case type against its lock."""
    path = lock_of(schema)
    try:
        locked = _locked(path)
    except ValueError:
        return Compared([Problem(path, 1, "", "is not what `silogate check --accept` writes; restore it")], [])
    if locked is None or locked["case_type"] != case_type.name:
        missing = f"has no {path.name} of the case type {case_type.name} yet; `silogate check --accept` writes it"
        return Compared([], [Problem(schema, 1, "", missing)])
    if locked["schema"] == contract(case_type.schema):
        return Compared([], [])
    found = breaks(locked["schema"], case_type.schema)
    if not found:
        later = f"has changed since {path.name}, in ways that may follow; `silogate check --accept` takes them in"
        return Compared([], [Problem(schema, 1, "", later)])
    lines = _lines(schema)
    return Compared([Problem(schema, lines.line(one.path), pointer(one.path), one.message) for one in found], [])


def accept(schema: Path, case_type: CaseType) -> Path:
    """Write the lock and give its path; only for a schema that `compare` finds unbroken."""
    path = lock_of(schema)
    kept = {"case_type": case_type.name, "schema": contract(case_type.schema)}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _locked(path: Path) -> Mapping[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as error:
        raise ValueError("unreadable") from error
    if isinstance(kept, dict) and isinstance(kept.get("schema"), dict) and isinstance(kept.get("case_type"), str):
        return kept
    raise ValueError("not a lock")


def _lines(schema: Path) -> Document:
    try:
        return read(schema)
    except InvalidDeclaration:
        # JSON that is no YAML: the fields are named all the same
        return Document(schema, {}, {})
