"""`silogate dlq`: parked cases listed, shown, tried again and given up. It prints no personal value."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry
from rich.table import Table

from gateway.assembly import Assembly
from gateway.audit import AuditUnavailable
from gateway.commands.auditing import auditing
from gateway.commands.opening import opened
from gateway.console import as_json, as_table, escape, fail, say
from gateway.settings import Settings
from streams.consumer import replay as parked
from streams.consumer.replay import NotTheHead, ParkedEvent, Rehearsed, Selection
from streams.errors import Misconfigured, Unavailable
from streams.mapping.compile import Mapping as FieldTable
from streams.recipients.database import RecipientDatabase
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.postgres import PostgresRecipient
from streams.topics import group_name

__all__ = ["Selection", "drop", "replay", "show_case", "show_list"]

_ACTOR = "cli"


async def show_list(settings: Settings, selection: Selection, *, limit: int, json: bool) -> int:
    """Print the parked cases."""
    async with opened(settings, command="dlq list") as assembly:
        cases = await parked.show(assembly.pool, selection, limit=limit)
    if json:
        as_json([asdict(case) for case in cases])
        return 0
    table = _table("group", "case", "events", "stage", "field", "reason", "attempts", "parked", "")
    for case in cases:
        state = "being tried again" if case.resuming else ""
        _row(
            table, case.group, case.case_id, case.events, case.stage, case.field, case.reason, case.attempts,
            f"{case.parked_at:%Y-%m-%d %H:%M}", state,
        )  # fmt: skip
    as_table(table)
    say(f"{len(cases):,} parked" if len(cases) < limit else f"the newest {limit:,}; --limit shows more")
    return 0


async def show_case(settings: Settings, group: str, case_id: UUID, *, limit: int, json: bool) -> int:
    """Print one parked case and what is known of its events; 1 when it is not parked."""
    async with opened(settings, command="dlq show") as assembly:
        found = await parked.show(assembly.pool, Selection(group, case_id), limit=1)
        if not found:
            fail(f"{case_id} is not parked at {group}")
        events = await parked.events(assembly.pool, group, case_id, limit=limit)
    if json:
        as_json({**asdict(found[0]), "waiting": [_event(one) for one in events]})
        return 0
    case = found[0]
    say(f"{case.stage}{f' at {case.field}' if case.field else ''}: {case.reason} (attempts: {case.attempts})")
    table = _table("event", "version", "type", "changed", "at", "id", "unreadable")
    for one in map(_event, events):
        changed = " ".join(one["changed"] or ())
        _row(table, one["position"], one["version"], one["type"], changed, one["at"], one["event_id"], one["problem"])
    as_table(table)
    return 0


def _event(parked_event: ParkedEvent) -> dict[str, Any]:
    event, problem = parked_event.event, parked_event.problem
    return {
        "position": parked_event.position,
        "version": None if event is None else event.version,
        "type": None if event is None else event.type,
        "changed": None if event is None else list(event.changed),
        "at": None if event is None else event.at.isoformat(timespec="seconds"),
        "event_id": None if event is None else event.event_id,
        "problem": None if problem is None else str(problem),
    }


async def replay(settings: Settings, selection: Selection, *, go: bool, limit: int, json: bool) -> int:
    """Have the cases tried again, or say what that would do; 1 when there are none to try."""
    async with opened(settings, command="dlq replay") as assembly:
        with _said():
            if not go:
                return await _rehearse(assembly, selection, limit=limit, json=json)
            async with auditing(assembly.pool) as audit:
                asked = await parked.request(assembly.pool, selection, actor=_ACTOR, audit=audit)
    if json:
        as_json({"group": selection.group, "asked": asked})
    elif asked:
        say(f"{asked:,} cases will be tried again by the worker that owns them; `silogate dlq list` shows what is left")
    if not asked:
        fail("no such case is parked, or all of them are being tried again already")
    return 0


async def _rehearse(assembly: Assembly, selection: Selection, *, limit: int, json: bool) -> int:
    async with _recipient(assembly, str(selection.group)) as recipient:
        found = await parked.rehearse(recipient, assembly.pool, selection, limit=limit)
    if not found:
        fail("no such case is parked")
    if json:
        as_json([asdict(one) for one in found])
    else:
        _print_rehearsal(found)
    return 0


def _print_rehearsal(found: Sequence[Rehearsed]) -> None:
    table = _table("case", "event", "version", "outcome", "field", "there", "would be")
    for one in found:
        said = one.rehearsal
        begin = (one.case_id, one.position, one.version, said.outcome)
        if not said.changes:
            _row(table, *begin, said.field, None, said.reason)
        for change in said.changes:
            values = ("(personal)", "(differs)") if change.is_personal else (change.there, change.would_be)
            _row(table, *begin, change.column, *values)
            begin = ("", "", "", "")  # type: ignore[assignment] # said once
    as_table(table)
    say("Nothing was written. What only the recipient's own rules refuse is not seen here. --go tries them again.")


async def drop(settings: Settings, selection: Selection, *, reason: str, json: bool) -> int:
    """Give the cases' events up; 1 when there are none, 2 when nothing says which."""
    if selection == Selection(selection.group):
        fail("say which cases: --case, --event, --stage, --field or --said", code=2)
    if not reason.strip():
        fail("--reason: say why", code=2)
    async with opened(settings, command="dlq drop") as assembly:
        with _said():
            async with auditing(assembly.pool) as audit:
                dropped = await parked.drop(assembly.pool, selection, reason=reason.strip(), actor=_ACTOR, audit=audit)
    if json:
        as_json({"group": selection.group, "dropped": dropped})
    elif dropped:
        say(f"{dropped:,} events are given up; they are kept in gateway.dropped_event")
    if not dropped:
        fail("no such case is parked, or all of them are being tried again")
    return 0


@contextmanager
def _said() -> Iterator[None]:
    """Say in a sentence why parked cases cannot be changed or rehearsed."""
    try:
        yield
    except NotTheHead as error:
        fail(f"{error}: those ahead of it come first")
    except (Misconfigured, Unavailable) as error:
        fail(f"the recipient cannot be asked: {error.reason}")
    except AuditUnavailable as error:
        fail(f"nothing was changed, because it could not be audited ({error})")


@asynccontextmanager
async def _recipient(assembly: Assembly, group: str) -> AsyncIterator[PostgresRecipient]:
    """The connector that reads as this group, for looking only."""
    prefix = group_name(assembly.settings.topic_prefix, "recipient.")
    name = group.removeprefix(prefix)
    for one in assembly.integrations:
        declaration = one.recipients.get(name)
        if not group.startswith(prefix) or declaration is None or one.case_type is None:
            continue
        address = assembly.settings.recipients.get(name)
        if address is None:
            fail(f"SILOGATE_RECIPIENT_{name.upper().replace('-', '_')}_URL is not set", code=2)
        database = RecipientDatabase(address.get_secret_value(), FieldTable.compile(declaration, one.case_type.type))
        try:
            yield PostgresRecipient(
                declaration,
                database,
                keys=assembly.keys,
                gateway_pool=assembly.pool,
                metrics=RecipientMetrics(CollectorRegistry(), [name]),
                wanted=None if one.flow is None else partial(one.flow.delivers, name),
            )
        finally:
            await database.close()
        return
    fail(
        f"{group} delivers to no recipient that is declared here, so there is nothing to compare with; --go tries again"
    )


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _row(table: Table, *cells: object) -> None:
    table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
