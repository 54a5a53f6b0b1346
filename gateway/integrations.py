"""Reads and checks integration and silo folders: every mistake by file, line and field, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cache.values import VALUE_TYPES, Index, Tagger
from gateway.case_lock import compare
from gateway.declarations import CaseTypeDeclaration, Integration, LookupDeclaration
from gateway.lookup_files import CASES, read_lookup
from streams.cases.casetype import CaseType, InvalidCaseType, pointer
from streams.cases.document import completed
from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.flow import Flow
from streams.flows.check import check_flow
from streams.recipients.declaration import RecipientDeclaration, read_recipient
from streams.silos.declaration import SiloDeclaration
from streams.silos.names import CANARY
from streams.silos.values import ValueTypes

# The sinks that this release can wire (gateway/worker.py).
SINKS = ("email",)
_NAME = r"^[a-z][a-z0-9-]{0,62}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _CaseType(_Strict):
    name: Annotated[str, Field(pattern=_NAME)]
    schema_file: Annotated[str, Field(alias="schema")]


class _Integration(_Strict):
    integration: Annotated[str, Field(pattern=_NAME)]
    title: str
    silos: tuple[str, ...] = ()
    case_type: _CaseType
    flow: str
    recipients: tuple[Annotated[str, Field(pattern=_NAME)], ...]


@dataclass(slots=True)
class Folders:
    """What a deployment declares, and what is wrong with it; only whole integrations are listed."""

    integrations: list[Integration] = field(default_factory=list)
    silos: dict[str, SiloDeclaration] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [integration.name for integration in self.integrations]

    def as_rows(self) -> list[dict[str, object]]:
        return [
            {"file": str(found.path), "line": found.line, "field": found.field, "message": found.message}
            for found in self.problems
        ]

    def summary(self) -> str:
        lookups = sum(len(integration.lookups) for integration in self.integrations)
        found = len(self.problems)
        return (
            f"{_count(len(self.integrations), 'integration')}, {_count(lookups, 'lookup')}, "
            f"{_count(len(self.silos), 'silo')}: {_count(found, 'mistake') if found else 'no mistakes'}"
        )


def tagger_of(silo: SiloDeclaration, key: bytes, key_id: str) -> Tagger:
    """Make the tagger of a declared silo."""
    tables = {
        table: tuple(Index(one.name, one.columns, one.kind, one.types) for one in indexes)
        for table, indexes in silo.indexes().items()
    }
    tables[CANARY] = ()
    return Tagger(silo.silo, tables, key, key_id)


def value_types() -> ValueTypes:
    """Give the silos' columns the same types, read by the same normalisers, as the lookups' parameters."""
    return ValueTypes(
        {name: kind.normalise for name, kind in VALUE_TYPES.items()},
        {name: kind.postgres_type for name, kind in VALUE_TYPES.items()},
    )


def read_folders(integrations: Path, silos: Path) -> Folders:
    """Read every folder; never raises for a mistake in one, but lists them all."""
    found = Folders()
    types = value_types()
    for folder in _folders(silos, "silo.yaml", found.problems):
        try:
            declaration = SiloDeclaration.parse(_text(folder / "silo.yaml"), folder / "silo.yaml", types)
        except InvalidDeclaration as error:
            found.problems += error.problems
        else:
            found.silos[declaration.silo] = declaration
    for folder in _folders(integrations, "integration.yaml", found.problems):
        try:
            found.integrations.append(_read_integration(folder, found.silos))
        except InvalidDeclaration as error:
            found.problems += error.problems
    _refuse_doubles(found)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidDeclaration([Problem(path, 1, "", "cannot be read as UTF-8 text")]) from None


def _folders(path: Path, marker: str, problems: list[Problem]) -> list[Path]:
    if (path / marker).is_file():
        return [path]
    folders = sorted(file.parent for file in path.glob(f"*/{marker}")) if path.is_dir() else []
    if not folders:
        problems.append(Problem(path, 1, "", f"holds no folder with a file {marker}"))
    return folders


def _read_integration(folder: Path, silos: Mapping[str, SiloDeclaration]) -> Integration:
    document = read(folder / "integration.yaml")
    declared = document.parse(_Integration)
    problems = [
        document.problem(("silos", index), f"names {name}, which no silo folder declares")
        for index, name in enumerate(declared.silos)
        if name not in silos
    ]
    if declared.integration != folder.name:
        problems.append(document.problem(("integration",), f"must be the folder's name, {folder.name}"))
    case_type = _case_type(folder, document, declared.case_type, problems)
    lookups = tuple(_lookups(folder, declared, silos, problems))
    if case_type is None:
        raise InvalidDeclaration(problems)
    recipients = _recipients(folder, document, declared.recipients, case_type, problems)
    flow = _flow(folder / declared.flow, case_type, recipients, folder / "templates", problems)
    if problems or flow is None:
        raise InvalidDeclaration(problems)
    return Integration(
        name=declared.integration,
        title=declared.title,
        folder=folder,
        lookups=lookups,
        case_type=_described(case_type, folder / declared.case_type.schema_file),
        flow=flow,
        recipients=recipients,
        templates=folder / "templates",
    )


def _case_type(folder: Path, document: Document, declared: _CaseType, problems: list[Problem]) -> CaseType | None:
    path = folder / declared.schema_file
    try:
        schema = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
        if not isinstance(schema, dict):
            raise InvalidCaseType("must be an object")
        case_type = CaseType(declared.name, schema)
    except (OSError, UnicodeDecodeError):
        at = ("case_type", "schema")
        problems.append(document.problem(at, f"names {path.name}, which is not there or not UTF-8 text"))
    except json.JSONDecodeError as error:
        problems.append(Problem(path, error.lineno, "", f"is not JSON: {error.msg}"))
    except _WrittenTwice as error:
        problems.append(Problem(path, 1, error.key, "is written twice in one object"))
    except InvalidCaseType as error:
        problems.append(Problem(path, 1, error.where, error.reason))
    except (ValueError, RecursionError):
        problems.append(Problem(path, 1, "", "cannot be read: a number is too long, or it is nested too deeply"))
    else:
        problems += _wrong_examples(path, case_type)
        problems += compare(path, case_type).broken
        return case_type
    return None


class _WrittenTwice(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # JSON keeps the last of two equal keys in silence: a mark or a limit in the first would be lost
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _WrittenTwice(key)
        found[key] = value
    return found


def _wrong_examples(path: Path, case_type: CaseType) -> Iterable[Problem]:
    """What is wrong with the schema's examples, which the API description shows as bodies of a POST."""
    for index, example in enumerate(case_type.schema.get("examples", [])):
        where = pointer(("examples", index))
        if not isinstance(example, dict):
            yield Problem(path, 1, where, "is not an object")
            continue
        for found in case_type.validate(completed(case_type, example, by="example", at=datetime.now(UTC))):
            yield Problem(path, 1, where + found.pointer, found.message)


def _described(case_type: CaseType, path: Path) -> CaseTypeDeclaration:
    example: dict[str, object] = next(iter(case_type.schema.get("examples", [])), {})
    return CaseTypeDeclaration(
        type=case_type,
        title=str(case_type.schema.get("title", case_type.name)),
        example={"type": case_type.name, **example},
        file=path,
    )


def _lookups(
    folder: Path, declared: _Integration, silos: Mapping[str, SiloDeclaration], problems: list[Problem]
) -> Iterable[LookupDeclaration]:
    for path in sorted((folder / "lookups").glob("*.yaml")):
        try:
            document = read(path)
            name = document.value.get("silo")
            if name != CASES and name not in declared.silos:
                raise InvalidDeclaration([document.problem(("silo",), "is not among the silos of integration.yaml")])
            yield read_lookup(path, tagger_of(silos[name], b"check", "check") if name in silos else None)
        except InvalidDeclaration as error:
            problems += error.problems


def _recipients(
    folder: Path, document: Document, names: Iterable[str], case_type: CaseType, problems: list[Problem]
) -> dict[str, RecipientDeclaration]:
    recipients = {}
    for index, name in enumerate(names):
        path = folder / "recipients" / f"{name}.yaml"
        if not path.is_file():
            problems.append(document.problem(("recipients", index), f"has no file recipients/{name}.yaml"))
            continue
        try:
            recipients[name] = read_recipient(path, case_type)
        except InvalidDeclaration as error:
            problems += error.problems
    return recipients


def _flow(
    path: Path, case_type: CaseType, recipients: Mapping[str, object], templates: Path, problems: list[Problem]
) -> Flow | None:
    try:
        flow = Flow.load(path)
    except InvalidDeclaration as error:
        problems += error.problems
        return None
    problems += check_flow(
        flow,
        case_type=case_type.name,
        case_schema=case_type.schema,
        recipients=recipients,
        sinks=SINKS,
        templates=templates,
    )
    return flow


def _refuse_doubles(found: Folders) -> None:
    seen: dict[str, str] = {}
    for integration in found.integrations:
        for lookup in integration.lookups:
            if lookup.name in seen:
                path = integration.folder / "lookups" / f"{lookup.name}.yaml"
                found.problems.append(Problem(path, 1, "lookup", f"is already declared by {seen[lookup.name]}"))
            seen[lookup.name] = integration.name


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
