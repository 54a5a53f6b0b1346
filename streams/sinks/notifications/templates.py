"""Mail templates: three files each, rendered in a sandbox from the fields of a case, and checked against its schema.

`NAME.subject.txt`, `NAME.body.txt` and `NAME.body.html` see every field of the case under its own name
(`submitter.name`, `category`) and `case.id`, `case.reference`, `case.type`, `case.version` and `case.at` (the time of
the event, in the United Kingdom). A field that the schema knows and the case lacks is none: it can be asked with `if`,
and writing it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from streams.declared import InvalidDeclaration, Problem
from streams.sinks.notifications.message import Text

PARTS = ("subject.txt", "body.txt", "body.html")
_LARGEST = 256 * 1024
# Residents read the day on which they wrote, not the day in Greenwich.
_HERE = ZoneInfo("Europe/London")


class Unrenderable(Exception):
    """The template cannot be rendered for this case. `reason` names a cause, never a value."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EmptyField(Exception):
    """A template writes a field that this case lacks."""


def _written(value: object) -> object:
    if value is None:
        raise EmptyField
    return value


def environment() -> ImmutableSandboxedEnvironment:
    """Return the only environment that templates run in: nothing to import, nothing to load, no unknown names."""
    return ImmutableSandboxedEnvironment(
        autoescape=lambda name: bool(name) and str(name).endswith(".html"),
        undefined=jinja2.StrictUndefined,
        finalize=_written,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@dataclass(frozen=True, slots=True)
class MailTemplate:
    """One compiled template. `skeleton` is the case schema's tree of fields, all of them none."""

    name: str
    parts: Mapping[str, jinja2.Template]
    skeleton: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path, name: str, schema: Mapping[str, Any]) -> MailTemplate:
        """Read and compile the three files; raises InvalidDeclaration for one that is missing or does not parse."""
        problems: list[Problem] = []
        parts: dict[str, jinja2.Template] = {}
        runner = environment()
        for part in PARTS:
            path = folder / f"{name}.{part}"
            try:
                code = runner.compile(source(path), path.name, str(path))
                parts[part] = jinja2.Template.from_code(runner, code, runner.make_globals(None))
            except jinja2.TemplateSyntaxError as error:
                problems.append(Problem(path, error.lineno, "", error.message or "does not parse"))
            except InvalidDeclaration as error:
                problems.extend(error.problems)
        if problems:
            raise InvalidDeclaration(problems)
        return cls(name, parts, skeleton(schema))

    def render(self, payload: Mapping[str, Any]) -> Text:
        """Render what the flow planned (`case`, `public`, `personal`); raises Unrenderable."""
        context = self.context(payload)
        try:
            subject, plain, html = (self.parts[part].render(context) for part in PARTS)
        except EmptyField:
            raise Unrenderable("empty_field") from None
        except jinja2.UndefinedError:
            raise Unrenderable("unknown_field") from None
        except jinja2.TemplateError as error:
            raise Unrenderable(type(error).__name__) from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # A template is a program: what it does to a value it did not expect is its own defect, not the sink's.
            raise Unrenderable(type(error).__name__) from None
        return Text(subject, plain, html)

    def context(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the names that the three files see."""
        fields = filled(self.skeleton, payload["public"], payload["personal"])
        at = datetime.fromisoformat(payload["case"]["at"]).astimezone(_HERE)
        return {**fields, "case": {**payload["case"], "at": at}}


def source(path: Path) -> str:
    """Read one template file; raises InvalidDeclaration."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidDeclaration([Problem(path, 1, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise InvalidDeclaration([Problem(path, 1, "", "is not UTF-8 text")]) from None
    if len(text) > _LARGEST:
        raise InvalidDeclaration([Problem(path, 1, "", "is larger than 256 KiB")])
    return text


def skeleton(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of a schema's fields: nested objects, and none for every other field."""
    tree: dict[str, Any] = {}
    for name, below in schema.get("properties", {}).items():
        nested = isinstance(below, Mapping) and "properties" in below
        tree[name] = skeleton(below) if nested else None
    return tree


def filled(tree: Mapping[str, Any], *documents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree with the documents' values in their places; a later document wins."""
    result = dict(tree)
    for document in documents:
        for name, value in document.items():
            below = result.get(name)
            result[name] = filled(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
