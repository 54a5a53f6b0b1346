"""`silogate check`: reads the folders, and with a database tries every lookup on its silo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache.cases import SILO as CASES
from cache.definition import LookupDefinition
from cache.examine.examine import Examined
from cache.examine.finding import Finding
from gateway.case_lock import accept as write_lock
from gateway.case_lock import compare
from gateway.console import as_json, fail, people, say
from gateway.declarations import LookupDeclaration
from gateway.examining import TooSlow, examine_lookup, lookup_connection
from gateway.integrations import Folders, read_folders, tagger_of
from gateway.lookup_files import read_lookup
from gateway.settings import Settings
from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.outages import DATABASE_ERRORS

_FIELDS = {"tags": "tags", "columns": "columns", "parameters": "parameters", "silo": "silo"}


@dataclass(slots=True)
class _Tried:
    """One SQL of a lookup, where it stands, and what came out."""

    declared: LookupDeclaration
    definition: LookupDefinition
    document: Document
    sql: Path
    found: Examined = field(default_factory=Examined)

    @property
    def title(self) -> str:
        return self.declared.name if self.definition is self.declared.definition else f"{self.declared.name} (cases)"

    def place(self, finding: Finding) -> Problem:
        """The finding with its file, line and field."""
        name = _FIELDS.get(finding.about)
        if name is None:
            return Problem(self.sql, finding.line or 1, "", finding.message)
        return self.document.problem((name,), finding.message)


async def check_folders(path: Path, silos: Path, settings: Settings | None, *, accept: bool = False, json: bool) -> int:
    """Print every mistake; with `settings` also what each lookup does on its silo. 1 for a mistake, else 0.

    A case type that may follow what was accepted before counts as a mistake until it is accepted too: `accept` does it.
    """
    folders = read_folders(path, silos)
    accepted = list(_judge_case_types(folders, accept=accept))
    tried = list(_to_try(folders)) if settings is not None else []
    if settings is not None:
        with _progress(len(tried), shown=not json) as advance:
            await _try_all(settings, folders, tried, advance)
    if json:
        rows: dict[str, Any] = {
            "integrations": folders.names,
            "silos": sorted(folders.silos),
            "problems": folders.as_rows(),
            "accepted": [str(lock) for lock in accepted],
        }
        as_json(rows | ({"lookups": [_row(one) for one in tried]} if settings is not None else {}))
    else:
        for lock in accepted:
            say(f"{lock}: written; commit it with the schema")
        _print(folders, tried, asked=settings is not None)
    refused = any(one.found.refused for one in tried)
    return 1 if folders.problems or refused else 0


def _judge_case_types(folders: Folders, *, accept: bool) -> Iterator[Path]:
    """Names the schemas that nobody has accepted yet, or accepts them: the locks that were written."""
    for one in folders.integrations:
        declared = one.case_type
        if declared is None or declared.file is None or not (new := compare(declared.file, declared.type).unaccepted):
            continue
        if accept:
            yield write_lock(declared.file, declared.type)
        else:
            folders.problems += new


def _to_try(folders: Folders) -> Iterator[_Tried]:
    for integration in folders.integrations:
        for declared in integration.lookups:
            yield from _of(declared, integration.folder / "lookups" / f"{declared.name}.yaml")
    for path in dict.fromkeys(problem.path for problem in folders.problems if problem.field == "tags"):
        # Without its tags a lookup is not read; but trying it is what tells which tags to write.
        if (untagged := _untagged(path, folders)) is not None:
            yield from _of(untagged, path)


def _of(declared: LookupDeclaration, path: Path) -> Iterator[_Tried]:
    document = read(path)
    yield _Tried(declared, declared.definition, document, path.parent / document.value["sql"])
    if declared.cases is not None:
        yield _Tried(declared, declared.cases, document, path.parent / document.value["cases"])


def _untagged(path: Path, folders: Folders) -> LookupDeclaration | None:
    try:
        document = read(path)
        silo = folders.silos.get(document.value.get("silo"))
        if silo is None or document.value.get("tags"):
            return None
        return read_lookup(path, tagger_of(silo, b"check", "check"), untagged=True)
    except InvalidDeclaration:
        return None


async def _try_all(settings: Settings, folders: Folders, tried: list[_Tried], advance: Any) -> None:
    for silo in sorted({one.definition.silo for one in tried}):
        tagger = None if silo == CASES else tagger_of(folders.silos[silo], b"check", "check")
        for one in (one for one in tried if one.definition.silo == silo):
            try:
                # A connection each: what one lookup does to its session is nothing to the next.
                async with lookup_connection(settings, silo) as connection:
                    one.found = await examine_lookup(connection, one.declared, one.definition, tagger)
            except TooSlow:
                late = Finding("error", "too_slow", "could not be tried within its time; is the database busy?")
                one.found = Examined(findings=(late,))
            except DATABASE_ERRORS as error:
                # never the driver's whole text: an address may hold a password
                fail(f"the silo {silo} cannot be asked ({type(error).__name__}); `silogate doctor` says more")
            advance(one.title)


def _row(one: _Tried) -> dict[str, Any]:
    found = one.found
    return {
        "name": one.declared.name,
        "silo": one.definition.silo,
        "sql": str(one.sql),
        "tables": found.tables,
        "tags": found.tags,
        "batched": found.batched,
        "plan": found.plan,
        "sampled": found.sampled,
        "findings": [_finding(finding, one.place(finding)) for finding in found.findings],
    }


def _finding(finding: Finding, place: Problem) -> dict[str, object]:
    return {
        "level": finding.level,
        "code": finding.code,
        "file": str(place.path),
        "line": place.line,
        "field": place.field,
        "message": place.message,
    }


def _print(folders: Folders, tried: Iterable[_Tried], *, asked: bool) -> None:
    for problem in folders.problems:
        say(str(problem))
    counts = {"error": 0, "warning": 0, "note": 0}
    for one in tried:
        mark = "✗" if one.found.refused else "✓"
        say(f"{mark} {one.title}: {_in_words(one.found, cached=one.definition.silo != CASES)}")
        for finding in one.found.findings:
            counts[finding.level] += 1
            place = one.place(finding)
            where = f"{place.path}:{place.line}: " + (f"{place.field}: " if place.field else "")
            say(f"    {finding.level}: {where}{finding.message}")
    said = "; ".join(_count(counts[level], level) for level in ("error", "warning") if counts[level])
    say(folders.summary() + (f"; tried on their silos: {said or 'nothing wrong'}" if asked else ""))


def _in_words(found: Examined, *, cached: bool) -> str:
    """What a lookup reads, how, and what makes its answers new."""
    parts = [f"reads {found.plan}"] if found.plan else ["not tried"]
    if cached and found.sampled:
        ways = "asked in batches" if found.batched else "asked one by one"
        parts.append(f"{ways} ({found.sampled} keys compared)")
    if not cached:
        parts.append("never stored")
    elif found.tags:
        parts.append("dropped by " + ", or ".join(found.tags))
    return "; ".join(parts)


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Any]:
    """Draw a bar on a terminal; elsewhere the lines are enough."""
    if not shown or not people.is_terminal:
        yield lambda _name: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=people, transient=True) as progress:
        bar = progress.add_task("trying the lookups", total=total)
        yield lambda name: progress.update(bar, description=name, advance=1)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
