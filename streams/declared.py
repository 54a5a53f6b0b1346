"""Declarations people write in YAML: read with line numbers, so that every mistake is named by file, line and field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

# Larger than any declaration a person keeps by hand; a file over it is somebody's mistake.
_LARGEST = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a declaration: where it stands and what is wrong, in words its author understands."""

    path: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return (
            f"{self.path}:{self.line}: {self.field}: {self.message}"
            if self.field
            else (f"{self.path}:{self.line}: {self.message}")
        )


class InvalidDeclaration(Exception):
    """A declaration that cannot be used; `problems` lists every mistake found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """YAML with only `true` and `false` as truth values: `on`, `no` and `yes` are words here (a key `on:`, Norway)."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            # what the constructors of dates, numbers and truth values raise where the text only looks like one
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"a value cannot be read as {kind}; put it in quotes if it is text", node.start_mark
            ) from error


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _word in ("true", "false"):
    _Loader.yaml_implicit_resolvers.setdefault(_word[0], []).append(
        ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"))
    )


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed file and the line on which each of its values begins."""

    path: Path
    value: Any
    lines: Mapping[Location, int]

    def line(self, location: Location) -> int:
        """Return the line of a value, or of the nearest thing around it that is there."""
        for length in range(len(location), -1, -1):
            if (found := self.lines.get(location[:length])) is not None:
                return found
        return 1

    def problem(self, location: Location, message: str) -> Problem:
        return Problem(self.path, self.line(location), ".".join(str(part) for part in location), message)

    def parse(self, model: type[ModelT]) -> ModelT:
        """Validate the file's content; raises InvalidDeclaration with every problem at its line."""
        try:
            return model.model_validate(self.value)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            raise InvalidDeclaration([self._from_pydantic(dict(item)) for item in details]) from None

    def _from_pydantic(self, item: Mapping[str, Any]) -> Problem:
        location = tuple(part for part in item["loc"] if self._stands(item["loc"], part))
        messages = {
            "extra_forbidden": "is not a field here; check its spelling",
            "missing": "is missing",
        }
        message = messages.get(item["type"], str(item["msg"]).removeprefix("Value error, "))
        return Problem(self.path, self.line(tuple(item["loc"])), ".".join(str(part) for part in location), message)

    def _stands(self, location: Location, part: str | int) -> bool:
        # pydantic puts the tags of unions into a location; only keys and list positions are the author's words
        index = location.index(part)
        return index == len(location) - 1 or location[: index + 1] in self.lines


def read(path: Path, text: str | None = None) -> Document:
    """Read one YAML file (or `text` in its name); raises InvalidDeclaration when it is not one mapping."""
    try:
        content = path.read_text(encoding="utf-8") if text is None else text
    except OSError as error:
        raise InvalidDeclaration([Problem(path, 1, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise InvalidDeclaration([Problem(path, 1, "", "is not UTF-8 text")]) from None
    if len(content) > _LARGEST:
        raise InvalidDeclaration([Problem(path, 1, "", "is larger than 1 MiB")])
    try:
        return _document(path, content)
    except RecursionError:
        raise InvalidDeclaration([Problem(path, 1, "", "is nested too deeply")]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "is not YAML"
        what = reason if isinstance(error, yaml.constructor.ConstructorError) else f"is not YAML: {reason}"
        raise InvalidDeclaration([Problem(path, mark.line + 1 if mark else 1, "", what)]) from None


def _document(path: Path, content: str) -> Document:
    root = yaml.compose(content, Loader=_Loader)
    if not isinstance(root, yaml.MappingNode):
        raise InvalidDeclaration([Problem(path, 1, "", "must be a mapping of fields to values")])
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content, Loader=_Loader)):
        # an alias can make a small file mean a huge one, and hides from the reader what a field holds
        raise InvalidDeclaration([Problem(path, 1, "", "uses a YAML alias (*name); write the value out")])
    lines: dict[Location, int] = {(): 1}
    problems: list[Problem] = []
    _walk(root, (), lines, problems, path)
    if problems:
        raise InvalidDeclaration(problems)
    return Document(path, _Loader("").construct_document(root), lines)


def _walk(node: yaml.Node, location: Location, lines: dict[Location, int], problems: list[Problem], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                problems.append(Problem(path, line, ".".join(map(str, location)), "has a key that is not one word"))
                continue
            here = (*location, str(key.value))
            if here in lines:
                problems.append(Problem(path, key.start_mark.line + 1, ".".join(map(str, here)), "is written twice"))
            lines[here] = key.start_mark.line + 1
            _walk(value, here, lines, problems, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*location, index)] = value.start_mark.line + 1
            _walk(value, (*location, index), lines, problems, path)
