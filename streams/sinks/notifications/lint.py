"""What is wrong with a mail template, before it is ever sent: unknown fields, and cases it cannot be written for."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes

from streams.declared import InvalidDeclaration, Problem
from streams.sinks.notifications.templates import PARTS, EmptyField, MailTemplate, environment, skeleton, source

_FACTS = {"id": "c0ffee00-0000-4000-8000-000000000000", "reference": "ABC-7KQ2-93XD", "version": 1}
_AT = "2026-11-22T12:00:00+00:00"


def check_template(
    folder: Path, name: str, schema: Mapping[str, Any], *, case_type: str = "example", sure: Collection[str] = ()
) -> list[Problem]:
    """Return every problem of a template with its file and line.

    `sure` are fields that every case has when this template is used: those the flow asks to be present.
    """
    try:
        template = MailTemplate.load(folder, name, schema)
    except InvalidDeclaration as error:
        return error.problems
    if "case" in schema.get("properties", {}):
        return [Problem(folder / f"{name}.{PARTS[0]}", 1, "case", "is a field of the case type, and hides what it is")]
    problems = [problem for part in PARTS for problem in _unknown_fields(folder / f"{name}.{part}", schema)]
    return problems or list(_trials(folder, template, schema, case_type, sure))


def _unknown_fields(path: Path, schema: Mapping[str, Any]) -> Iterator[Problem]:
    tree = {**skeleton(schema), "case": dict.fromkeys([*_FACTS, "type", "at"])}
    parsed = environment().parse(source(path))
    free = meta.find_undeclared_variables(parsed)
    for node in parsed.find_all((nodes.Name, nodes.Getattr, nodes.Getitem)):
        step = _step(node, tree, free)
        if step is not None and step[1] not in step[0]:
            near = difflib.get_close_matches(step[1], list(step[0]), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Problem(path, node.lineno, step[1], f"is not a field of the case{hint}")


def _step(node: nodes.Node, tree: Mapping[str, Any], free: Collection[str]) -> tuple[Mapping[str, Any], str] | None:
    """Return the object of the case that a node looks into and the name it looks for, or None for anything else."""
    if isinstance(node, nodes.Name):
        return (tree, node.name) if node.ctx == "load" and node.name in free else None
    if isinstance(node, nodes.Getattr):
        name: object = node.attr
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        name = node.arg.value
    else:
        return None
    inner = _step(node.node, tree, free)
    if inner is None or not isinstance(name, str):
        return None
    below = inner[0].get(inner[1])
    return (below, name) if isinstance(below, Mapping) else None


def _trials(
    folder: Path, template: MailTemplate, schema: Mapping[str, Any], case_type: str, sure: Collection[str]
) -> Iterator[Problem]:
    """Write the template for the barest case, for the fullest, and for each allowed value of each field."""
    seen: set[tuple[str, int | None]] = set()
    for document in (sample(schema, sure), sample(schema, None), *_each_choice(schema)):
        context = template.context({"public": document, "personal": {}, "case": _facts(case_type)})
        for part in PARTS:
            path = folder / f"{template.name}.{part}"
            try:
                template.parts[part].render(context)
            except Exception as error:  # noqa: BLE001 - whatever a template raises is a problem of the template
                line = _line(error, path)
                if (part, line) not in seen:
                    seen.add((part, line))
                    yield Problem(path, line or 1, "", _what(error))


def _facts(case_type: str) -> dict[str, Any]:
    return {**_FACTS, "type": case_type, "at": _AT}


def _what(error: Exception) -> str:
    if isinstance(error, EmptyField):
        return "writes a field that a case need not have; put it inside {% if … %}"
    if isinstance(error, jinja2.UndefinedError):
        return f"asks for what is not there for some cases: {error.message}"
    return f"fails for some cases: {type(error).__name__}"


def _line(error: Exception, path: Path) -> int | None:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def sample(schema: Mapping[str, Any], sure: Collection[str] | None, path: str = "") -> Any:
    """Return a value that a schema allows: with `sure` None the fullest, else only what is required or sure."""
    if "properties" in schema:
        required = set(schema.get("required", ()))
        return {
            name: sample(below, sure, f"{path}.{name}" if path else name)
            for name, below in schema["properties"].items()
            if sure is None or name in required or _is_sure(f"{path}.{name}" if path else name, sure)
        }
    if "enum" in schema or "const" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type")
    if kind == "array":
        return [sample(schema.get("items", {}), sure, f"{path}[]")]
    samples: Mapping[str, Any] = {"number": 1.5, "integer": 1, "boolean": True, "object": {}, "null": None}
    return samples.get(kind if isinstance(kind, str) else "", "example")


def _is_sure(path: str, sure: Collection[str]) -> bool:
    return any(known == path or known.startswith(path + ".") for known in sure)


def _each_choice(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, below in schema.get("properties", {}).items():
        for value in below.get("enum", ()) if isinstance(below, Mapping) else ():
            yield {**sample(schema, None), name: value}
