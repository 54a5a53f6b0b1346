"""`silogate lookups try`: one question, asked as the gateway asks it, and where its answer came from."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
import typer
from prometheus_client import CollectorRegistry

from cache.answer import Answer
from cache.group import Group
from cache.joined import JoinedLookup
from cache.loader import Question, SiloUnavailable
from cache.metrics import CacheMetrics
from cache.reads import Reading
from cache.store import Store
from gateway.asking import Asking, asking
from gateway.assembly import Assembly
from gateway.audit import Audit, AuditUnavailable
from gateway.commands.lookups import lookups_of, the_lookup
from gateway.commands.opening import opened
from gateway.console import as_json, fail, say, shown_seconds
from gateway.declarations import LookupDeclaration
from gateway.lookup import Lookup
from gateway.problems import Problem
from gateway.settings import Settings
from gateway.telemetry import EdgeMetrics

_ACTOR = "cli"
# What a miss brought is on its way to Redis when the answer is there.
_FOR_THE_FILL_S = 0.05


async def try_lookup(settings: Settings, name: str, given: Sequence[str], *, results: bool, json: bool) -> int:
    """Ask one lookup as the gateway would, and say where the answer came from; 0 when there is a verdict."""
    async with opened(settings, command="lookups try") as assembly:
        declared = the_lookup(lookups_of(assembly.folders), name)
        values = _values(declared, given)
        async with asking(assembly, CacheMetrics(CollectorRegistry())) as lookups:
            lookup = Lookup(declared, lookups.groups[name], assembly.ring.hmac)
            try:
                parameters = lookup.parameters_of(values)
            except Problem as problem:
                fail(f"{name}: {problem.field or 'parameters'}: {problem.detail}", code=2)
            tried = await _run(assembly, lookups, lookup, parameters)
    if isinstance(tried, str):
        fail(f"{name}: {tried}")
    if json:
        as_json(tried.as_row(results=results or not declared.personal))
    else:
        tried.show(results=results or not declared.personal)
    return 0 if tried.answer.verdict != "cannot_tell" else 1


@dataclass(frozen=True, slots=True)
class _Tried:
    """One question as it was answered, and what Redis held of it a moment before."""

    declared: LookupDeclaration
    answer: Answer
    tags: tuple[str, ...]
    newest: float | None
    redis_ms: float | None
    total_ms: float

    def as_row(self, *, results: bool) -> dict[str, Any]:
        answer = self.answer
        row: dict[str, Any] = {
            "lookup": self.declared.name,
            "verdict": answer.verdict,
            "reason": answer.reason,
            "source": answer.source,
            "age_s": round(answer.age_s, 3),
            "staleness_bound_ms": answer.staleness_bound_ms,
            "as_of": answer.as_of.token,
            "as_of_time": answer.as_of.time,
            "tags": self.tags,
            "tags_last_touched_at": self.newest,
            "redis_ms": self.redis_ms,
            "total_ms": round(self.total_ms, 2),
            "rows": len(orjson.loads(answer.results)),
        }
        return row | ({"results": orjson.loads(answer.results)} if results else {})

    def show(self, *, results: bool) -> None:
        answer, row = self.answer, self.as_row(results=False)
        because = "" if answer.reason is None else f" ({answer.reason})"
        bound = "not measured" if answer.staleness_bound_ms is None else f"at most {answer.staleness_bound_ms} ms"
        redis = "not asked" if self.redis_ms is None else f"{self.redis_ms:.1f} ms"
        lines = (
            ("verdict", f"{answer.verdict}{because}, {row['rows']} rows"),
            ("source", _SOURCES[answer.source]),
            ("took", f"{self.total_ms:.1f} ms; Redis alone: {redis}"),
            ("age", f"{shown_seconds(answer.age_s)}; missing changes: {bound}"),
            ("as of", f"{answer.as_of.token} {'' if answer.as_of.time is None else answer.as_of.time.isoformat()}"),
            ("tags", "\n             ".join(self.tags) or "none: it is never cached"),
            ("touched", "not since the tags are kept" if (self.newest or -1) < 0 else f"last at seq {self.newest:.0f}"),
        )
        for label, text in lines:
            say(f"  {label:<11}{text}")
        if results:
            typer.echo(orjson.dumps(orjson.loads(answer.results), option=orjson.OPT_INDENT_2))
        else:
            say("  (personal: the rows are shown with --results)")


_SOURCES = {
    "hit": "hit: from the cache, checked against the change log",
    "miss": "miss: from the silo; the cache keeps it from now on, if nothing changed meanwhile",
    "stale": "stale: from the cache past its time, because the silo did not answer",
    "bypass": "bypass: from the database itself, without the cache",
}


async def _run(assembly: Assembly, lookups: Asking, lookup: Lookup, parameters: Mapping[str, object]) -> _Tried | str:
    """Run the parts that this lookup needs for as long as one answer takes."""
    declared = lookup.declaration
    group = lookups.groups[declared.name]
    async with asyncio.TaskGroup() as background:
        running = [background.create_task(lookups.cases.run())]
        parts = lookups.silos.get(declared.definition.silo)
        if parts is not None:
            running += [background.create_task(parts.silo.run()), background.create_task(parts.store.run())]
        try:
            if declared.personal:
                await _audit(assembly, lookup.subject_of(parameters), declared.name)
            silo_part = group.group if isinstance(group, JoinedLookup) else group
            question = silo_part.question(parameters) if isinstance(silo_part, Group) else None
            redis_ms, reading = await _read(parts.store, question) if parts and question else (None, None)
            started = time.perf_counter()
            answer = await lookup.ask(parameters, timeout_s=assembly.settings.lookup_timeout, min_as_of=None)
            total_ms = (time.perf_counter() - started) * 1000
            await asyncio.sleep(_FOR_THE_FILL_S)
        except SiloUnavailable as error:
            return f"nothing could answer in time: {error}"
        except AuditUnavailable:
            return "a personal question leaves an audit row, and that cannot be written now"
        finally:
            for task in running:
                task.cancel()
    newest = None if reading is None else reading.newest
    return _Tried(declared, answer, () if question is None else question.tags, newest, redis_ms, total_ms)


async def _read(store: Store, question: Question) -> tuple[float | None, Reading | None]:
    started = time.perf_counter()
    reading = await store.read(question.digest, question.tags)
    return (None, None) if reading is None else ((time.perf_counter() - started) * 1000, reading)


async def _audit(assembly: Assembly, subject: str, name: str) -> None:
    """Leave the row that a personal question leaves, whoever asks it."""
    audit = Audit(assembly.pool, metrics=EdgeMetrics(CollectorRegistry(), "cli"))
    failure: AuditUnavailable | None = None
    async with asyncio.TaskGroup() as writing:
        writer = writing.create_task(audit.run())
        try:
            await audit.record(
                actor=_ACTOR,
                action=f"lookup.{name}",
                subject=subject,
                outcome="tried",
                correlation_id=str(uuid4()),
                detail={},
            )
        except AuditUnavailable as error:
            # raised after the group, which would wrap it
            failure = error
        finally:
            writer.cancel()
    if failure is not None:
        raise failure


def _values(declared: LookupDeclaration, given: Sequence[str]) -> dict[str, object]:
    """The parameters from `name=value`, bare values in their order, or one JSON object on standard input."""
    if list(given) == ["-"]:
        try:
            found = orjson.loads(sys.stdin.buffer.read())
        except orjson.JSONDecodeError:
            fail("standard input is not JSON", code=2)
        if not isinstance(found, dict):
            fail("standard input is not a JSON object", code=2)
        return found
    if declared.personal:
        example = orjson.dumps({name: one.example for name, one in declared.parameters.items()}, default=str).decode()
        fail(f"personal values never stand in a command line; give them as JSON: echo '{example}' | … -", code=2)
    names = list(declared.parameters)
    values: dict[str, object] = {}
    for place, text in enumerate(given):
        name, found_equals, value = text.partition("=")
        if found_equals and name in declared.parameters:
            values[name] = value
        elif place < len(names):
            values[names[place]] = text
        else:
            fail(f"{declared.name} has {len(names)} parameters: {', '.join(names)}", code=2)
    return values
