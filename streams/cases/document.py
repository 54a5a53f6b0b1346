"""What may be done to a case's document: complete it, merge a patch into it, refuse what cannot be stored."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any
from uuid import uuid4

import orjson

from streams.cases.casetype import CaseType, Problem, pointer

NOTES = "notes"


def completed(case_type: CaseType, document: Mapping[str, Any], *, by: str, at: datetime) -> dict[str, Any]:
    """The document of a new case with what the gateway fills in: the status, and each note's id, time and author."""
    whole = deepcopy(dict(document))
    whole.setdefault("status", case_type.statuses[0])
    notes = whole.get(NOTES)
    if isinstance(notes, list):
        whole[NOTES] = [{**new_note("", by=by, at=at), **note} if isinstance(note, dict) else note for note in notes]
    return whole


def new_note(text: str, *, by: str, at: datetime) -> dict[str, str]:
    """One note as it stands in a document."""
    return {"id": str(uuid4()), "at": at.isoformat().replace("+00:00", "Z"), "by": by, "text": text}


def merge_patch(target: object, patch: object) -> Any:
    """RFC 7396: objects merge, null removes, everything else replaces. Neither argument is changed."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def problems_of(case_type: CaseType, document: Mapping[str, Any]) -> list[Problem]:
    """Everything that keeps the document from being stored as a case of this type."""
    if not is_storable(document):
        return [Problem("", "is nested too deeply or holds what JSON cannot carry")]
    return case_type.validate(document) or [
        Problem(where, "holds a NUL character, which no database column takes") for where in _nul(document, ())
    ]


def is_storable(document: Mapping[str, Any]) -> bool:
    """Whether JSON can carry it at all, so that merging or walking it cannot run out of stack."""
    try:
        orjson.dumps(document)
    except TypeError:
        return False
    return True


def _nul(node: object, path: tuple[str | int, ...]) -> Iterator[str]:
    if isinstance(node, str):
        if "\x00" in node:
            yield pointer(path)
    elif isinstance(node, Mapping):
        for name, below in node.items():
            yield from [pointer(path)] if "\x00" in name else _nul(below, (*path, name))
    elif isinstance(node, list):
        for index, below in enumerate(node):
            yield from _nul(below, (*path, index))
