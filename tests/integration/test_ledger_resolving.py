"""What people do with effects: look into one without reading it, and say what became of one that nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.effects.resolving import NoSuchEffect, NotUnknown, Told, listed, masked, resolve, show
from tests.effects import (
    RESIDENT,
    attempts,
    audit_rows,
    auditing,
    case_keys,
    effects,
    ledger,
    open_pool,
    plan_confirmation,
    running,
    settled,
    states,
)
from tests.providers import NoneSink

UNKNOWN = ("effect.attempt", "unknown", 1)


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


async def left_unknown(pool: asyncpg.Pool, audit: Audit, sink: NoneSink) -> UUID:
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)):
        effect_id: UUID = (await settled(pool, "unknown"))["effect_id"]
    return effect_id


@pytest.mark.parametrize(("outcome", "reference", "reason"), [("done", "tel-7", None), ("failed", None, "bounced")])
async def test_a_person_says_what_became_of_it(
    pool: asyncpg.Pool, audit: Audit, outcome: Told, reference: str | None, reason: str | None
) -> None:
    """Done or failed by somebody's word: the effect ends, the attempt says so, one row tells who said it."""
    sink = NoneSink("lost")
    effect_id = await left_unknown(pool, audit, sink)
    await resolve(pool, effect_id, outcome, reference=reference, reason="bounced", actor="ann", audit=audit)
    (effect,) = await effects(pool)
    assert (effect["state"], effect["provider_ref"], effect["reason"]) == (outcome, reference, reason)
    assert await attempts(pool) == [(1, "committing", outcome)]
    assert await audit_rows(pool) == [UNKNOWN, ("effect.resolved", outcome, 1)]
    assert await pool.fetchval("select actor from audit where action = 'effect.resolved'") == "ann"
    with pytest.raises(NotUnknown, match=outcome):
        await resolve(pool, effect_id, "resend", reason="again", actor="ann", audit=audit)
    assert len(sink.acts) == 1


async def test_a_person_has_it_sent_again(pool: asyncpg.Pool, audit: Audit) -> None:
    """Resend performs the same bytes as a new attempt, and another loss leaves it unknown again, to be told again."""
    sink = NoneSink("vanished", "vanished")
    effect_id = await left_unknown(pool, audit, sink)
    async with running(ledger(pool, sink, audit)):
        await resolve(pool, effect_id, "resend", reason="not in their log", actor="ann", audit=audit)
        while (await effects(pool))[0]["attempt"] < 2 or await states(pool) != ["unknown"]:
            await asyncio.sleep(0.02)
        await resolve(pool, effect_id, "resend", reason="not in their log", actor="ann", audit=audit)
        effect = await settled(pool, "done")
    assert (effect["attempt"], len(sink.acts), len(set(sink.calls)), sink.rendered) == (3, 1, 1, 1)
    resolved = [row for row in await audit_rows(pool) if row[0] == "effect.resolved"]
    assert resolved == [("effect.resolved", "not_sent", 1), ("effect.resolved", "not_sent", 2)]


async def test_two_people_at_once_are_one(pool: asyncpg.Pool, audit: Audit) -> None:
    """Of two who resolve the same effect, one is told that there is nothing left to find out."""
    effect_id = await left_unknown(pool, audit, NoneSink("lost"))
    answers = await asyncio.gather(
        *(resolve(pool, effect_id, "done", reason="seen", actor=name, audit=audit) for name in ("ann", "bob")),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers if answer is not None] == [NotUnknown]
    assert len(await audit_rows(pool)) == 2


async def test_what_is_under_way_or_not_there_is_not_resolved(pool: asyncpg.Pool, audit: Audit) -> None:
    """A planned effect and an id that nobody knows are refused, and leave no audit row."""
    await plan_confirmation(pool)
    (effect,) = await effects(pool)
    with pytest.raises(NotUnknown, match="planned"):
        await resolve(pool, effect["effect_id"], "done", reason="seen", actor="ann", audit=audit)
    with pytest.raises(NoSuchEffect):
        await resolve(pool, uuid4(), "done", reason="seen", actor="ann", audit=audit)
    assert await audit_rows(pool) == []


async def test_an_effect_is_shown_without_its_words(pool: asyncpg.Pool, audit: Audit) -> None:
    """Attempts, reason and the shape of the stored bytes are shown; the address in them is not."""
    effect_id = await left_unknown(pool, audit, NoneSink("lost"))
    found = await show(pool, effect_id, case_keys())
    assert found.request is not None
    assert RESIDENT not in found.request
    assert "a···.w···@e···.o···" in found.request
    assert (found.effect.reason, found.attempts[0]["outcome"], found.request_bytes > 0) == (
        "http:reset",
        "unknown",
        True,
    )
    (row,) = await listed(pool, states=["unknown"], sink="email", reference=found.effect.reference)
    assert row == found.effect
    assert await listed(pool, states=["planned"]) == []
    await pool.execute("update case_key set wrapped = null, erased_at = now()")
    erased = await show(pool, effect_id, case_keys())
    assert (erased.request, erased.missing) == (None, "the case is erased")
    with pytest.raises(NoSuchEffect):
        await show(pool, uuid4(), case_keys())


def test_a_masked_document_keeps_its_fields() -> None:
    """Names of fields, lengths of lists and marks stay; each word is its first letter, a number no more than that."""
    text = masked(b'{"to":"ada@example.org","lines":["Dear Ada,","\xc3\x89t\xc3\xa9 01903 5"],"copy":true,"n":1234}')
    assert "ada" not in text.lower()
    assert "01903" not in text
    assert "1234" not in text
    for kept in ('"to"', '"lines"', '"copy": true', "D···"):
        assert kept in text
