"""Where a field's value comes from: a path into the case, resolved against the case type's JSON Schema."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.cases.casetype import CaseType

EVENT_FIELDS: Mapping[str, str] = {
    "event.reference": "text",
    "event.case_type": "text",
    "event.correlation_id": "text",
    "event.version": "integer",
    "event.at": "timestamp",
}

_STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)((?:\[(?:-?\d{1,4})?\])?)(?:\.|$)")
_KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}


class UnknownSource(ValueError):
    """The path is not one into the case; says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One name of a path, and which item of the list behind it: a position, every item, or (no list) none."""

    name: str
    index: int | None = None
    every: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A resolved path: what kind of value stands there, and what its schema promises about it.

    `kind` ends in `[]` when the path goes through every item of a list. `event`: not of the document but of the event.
    """

    path: str
    steps: tuple[Step, ...]
    kind: str
    personal: bool = False
    enum: tuple[Any, ...] | None = None
    format: str | None = None
    event: bool = False


def resolve(path: str, case_type: CaseType) -> Source:
    """The source a path names; raises UnknownSource."""
    if path.startswith("event.") and "event" not in case_type.schema.get("properties", {}):
        if path not in EVENT_FIELDS:
            raise UnknownSource(f"{path!r} is none of {', '.join(EVENT_FIELDS)}")
        return Source(path, (Step(path.removeprefix("event.")),), EVENT_FIELDS[path], event=True)
    steps = parse(path)
    node: Mapping[str, Any] = case_type.schema
    every = False
    for number, step in enumerate(steps):
        node = _child(node, step, case_type.schema, ".".join(one.name for one in steps[: number + 1]))
        every = every or step.every
    kind = _kind(node, path)
    names = tuple(step.name for step in steps)
    personal = any(names[: len(marked)] == marked for marked in case_type.personal)
    enum = node.get("enum")
    return Source(
        path,
        steps,
        kind + "[]" if every else kind,
        personal=personal,
        enum=tuple(enum) if isinstance(enum, list) and not every else None,
        format=node.get("format"),
    )


def parse(path: str) -> tuple[Step, ...]:
    """The steps of `submitter.name`, `notes[0].text` or `notes[].text`; raises UnknownSource."""
    steps = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            raise UnknownSource(f"{path!r} is not a path such as submitter.name, notes[0].text or notes[].text")
        index = match[2].strip("[]")
        steps.append(Step(match[1], int(index) if index else None, every=match[2] == "[]"))
        position = match.end()
    if not steps or path.endswith("."):
        raise UnknownSource(f"{path!r} is not a path such as submitter.name, notes[0].text or notes[].text")
    if sum(step.every for step in steps) > 1 or any(step.every or step.index is not None for step in steps[:-2]):
        raise UnknownSource(f"{path!r} goes through a list too deep: one list, and one name after it")
    return tuple(steps)


def _child(node: Mapping[str, Any], step: Step, root: Mapping[str, Any], so_far: str) -> Mapping[str, Any]:
    below = node.get("properties", {}).get(step.name)
    if not isinstance(below, Mapping):
        raise UnknownSource(f"the case type has no field {so_far}")
    below = _followed(below, root)
    if step.index is None and not step.every:
        return below
    items = below.get("items")
    if below.get("type") != "array" or not isinstance(items, Mapping):
        raise UnknownSource(f"{so_far} is not a list in the case type")
    return _followed(items, root)


def _followed(node: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return node
    target: Any = root
    for name in reference.removeprefix("#/").split("/"):
        target = target.get(name) if isinstance(target, Mapping) else None
    if not reference.startswith("#/") or not isinstance(target, Mapping):
        raise UnknownSource(f"the case type's schema points to {reference}, which is not in it")
    return target


def _kind(node: Mapping[str, Any], path: str) -> str:
    declared = node.get("type")
    if isinstance(declared, list):
        declared = next((one for one in declared if one != "null"), None) if len(declared) <= 2 else None
    if declared is None and all(isinstance(value, str) for value in node.get("enum", [0])):
        declared = "string"
    if declared not in _KINDS:
        raise UnknownSource(f"{path} is not a single text, number or truth value in the case type")
    return _KINDS[declared]
