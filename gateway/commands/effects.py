"""`silogate effects`: what waits, is held or unknown, one effect in full, and what a person found out about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeVar
from uuid import UUID

import asyncpg
from prometheus_client import CollectorRegistry
from rich.table import Table

from gateway.audit import Audit, AuditUnavailable
from gateway.commands.opening import opened, said
from gateway.console import as_json, as_table, fail, say, shown_seconds
from gateway.database import gateway_pool
from gateway.settings import Settings
from gateway.telemetry import EdgeMetrics
from streams.effects import resolving
from streams.effects.governor import release as release_sink
from streams.effects.resolving import Listed, NoSuchEffect, NotUnknown, Shown, Told
from streams.topics import effects_topic

_T = TypeVar("_T")
# What somebody may have to do something about, or wait for.
OPEN = ("planned", "intent", "unknown", "failed")


async def show_list(
    settings: Settings, states: list[str], sink: str | None, case: str | None, limit: int, *, json: bool
) -> int:
    """List effects, those that have not moved for longest first; without a state all that are not done."""
    with said():
        async with gateway_pool(settings, size=1) as pool:
            found = await resolving.listed(pool, states=states or OPEN, sink=sink, reference=case, limit=limit)
    if json:
        as_json([asdict(one) for one in found])
        return 0
    table = Table("effect", "case", "sink", "purpose", "state", "attempts", "since", "why", box=None, pad_edge=False)
    for one in found:
        table.add_row(
            str(one.effect_id),
            one.reference,
            one.sink,
            one.purpose,
            one.state if one.held is None else f"{one.state}, held",
            str(one.attempt),
            shown_seconds(round((datetime.now(UTC) - one.updated_at).total_seconds())),
            one.held or one.reason or "",
        )
    as_table(table)
    return 0


async def show(settings: Settings, effect: str, *, json: bool) -> int:
    """Print one effect with its attempts, the questions about it, and the masked bytes that were performed."""
    effect_id = _id(effect)
    async with opened(settings, command="effects show") as assembly:
        try:
            found = await resolving.show(assembly.pool, effect_id, assembly.keys)
        except NoSuchEffect:
            fail(f"there is no effect {effect_id}")
    if json:
        as_json({**asdict(found), "what_resolves": what_resolves(found.effect)})
    else:
        _print(found)
    return 0


def _print(found: Shown) -> None:
    facts = Table("fact", "value", box=None, pad_edge=False, show_header=False)
    for name, value in {**asdict(found.effect), "request_sha256": found.request_sha256}.items():
        if value is not None:
            facts.add_row(name.replace("_", " "), str(value))
    as_table(facts)
    for title, rows in (("attempt", found.attempts), ("question", found.checks)):
        if rows:
            table = Table(*(title if n == 0 else name for n, name in enumerate(rows[0])), box=None, pad_edge=False)
            for row in rows:
                table.add_row(*("" if value is None else str(value) for value in row.values()))
            as_table(table)
    if found.request is None:
        say(f"request: {found.missing}")
    else:
        table = Table(f"request, {found.request_bytes} bytes, masked", box=None, pad_edge=False)
        for line in found.request.splitlines():
            table.add_row(line)
        as_table(table)
    if text := what_resolves(found.effect):
        say(text)


def what_resolves(effect: Listed) -> str:
    """Say what comes next for an effect that has not ended by itself."""
    if effect.held == "first_run":
        return f"Held: so many at once where {effect.sink} has never acted. `silogate effects release {effect.sink}`"
    if effect.held == "rate":
        return f"Held until {effect.due_at:%H:%M:%S} UTC: {effect.sink} has used up what it may do in an hour."
    if effect.state != "unknown":
        return ""
    if effect.check_at is not None:
        return f"It may or may not have happened. The provider is asked about it at {effect.check_at:%H:%M:%S} UTC."
    return (
        "It may or may not have happened, and only a person can find out: ask the provider, or look in its log, for"
        f" {effect.effect_id}. Then `silogate effects resolve {effect.effect_id} done|failed|resend --reason …`"
    )


async def resolve(settings: Settings, effect: str, outcome: str, reference: str | None, reason: str) -> int:
    """Write down what became of an unknown effect; 1 when there is none to resolve."""
    effect_id = _id(effect)
    told: dict[str, Told] = {"done": "done", "failed": "failed", "resend": "resend"}
    if outcome not in told:
        fail(f"an effect is resolved as done, failed or resend, not as {outcome}", code=2)
    if not reason.strip():
        fail("--reason must say how that is known", code=2)
    if reference is not None and outcome != "done":
        fail("--reference belongs to an effect that is done", code=2)

    async def act(pool: asyncpg.Pool, audit: Audit) -> None:
        await resolving.resolve(
            pool,
            effect_id,
            told[outcome],
            reference=reference,
            reason=reason,
            actor="cli",
            audit=audit,
            outcomes_topic=effects_topic(settings.topic_prefix),
        )

    try:
        await _audited(settings, act)
    except NoSuchEffect:
        fail(f"there is no effect {effect_id}")
    except NotUnknown as error:
        fail(f"{effect_id}: {error}")
    say(f"{effect_id}: {'it is performed again' if outcome == 'resend' else outcome}")
    return 0


async def release(settings: Settings, sink: str, *, json: bool) -> int:
    """Let a sink act, and all of it that is held go."""

    async def act(pool: asyncpg.Pool, audit: Audit) -> int:
        return await release_sink(pool, sink, actor="cli", audit=audit)

    released = await _audited(settings, act)
    if json:
        as_json({"sink": sink, "released": released})
    else:
        say(f"{sink}: {released:,} effects released")
    return 0


async def _audited(settings: Settings, act: Callable[[asyncpg.Pool, Audit], Awaitable[_T]]) -> _T:
    """Do one thing on the gateway's database, with the audit trail's writer running."""
    with said():
        async with gateway_pool(settings, size=3) as pool:
            audit = Audit(pool, metrics=EdgeMetrics(CollectorRegistry(), version("silogate")))
            writer = asyncio.create_task(audit.run())
            try:
                return await act(pool, audit)
            except AuditUnavailable as error:
                fail(f"nothing is changed, as it could not be audited ({error})")
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        fail(f"{text} is not the id of an effect", code=2)
