"""What follows an act that may have happened, for each class of sink: done once, or said to be unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.effects.resolution import Patience
from streams.errors import Misconfigured
from streams.sinks import SinkClass
from tests.effects import (
    ControlledSink,
    attempts,
    audit_rows,
    auditing,
    effects,
    expire,
    ledger,
    lose,
    open_pool,
    plan_confirmation,
    running,
    settled,
    states,
    until,
)
from tests.providers import (
    KeyedSearchableSink,
    KeyedSink,
    NaturalSink,
    NoneSink,
    Provider,
    Search,
    SearchableSink,
)

# no margin: the keys of these tests live for a second
EXACT = Patience(poll_s=0.02, backoff_s=0.02, backoff_cap_s=0.1, settle_s=20.0, census_s=0.2, key_margin_s=0.0)
WEARY = Patience(poll_s=0.02, backoff_s=0.02, give_up_after_s=0.0, settle_s=20.0)


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


async def performed(pool: asyncpg.Pool, audit: Audit, sink: Provider, state: str, **changed: Any) -> dict[str, Any]:
    """Plan one effect, let a worker perform it, and return it in the state it ends in."""
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit, **changed)):
        return dict(await settled(pool, state))


async def outcomes(pool: asyncpg.Pool) -> list[str | None]:
    return [outcome for _, _, outcome in await attempts(pool)]


async def answers(pool: asyncpg.Pool) -> list[str]:
    return [row["answer"] for row in await pool.fetch("select answer from effect_check order by effect_id, n")]


async def test_a_keyed_sink_is_called_again_with_the_same_bytes_and_key(pool: asyncpg.Pool, audit: Audit) -> None:
    """A lost answer is asked for again under the key: one act, its first reference, the bytes rendered once."""
    sink = KeyedSink("lost", "busy", "lost")
    effect = await performed(pool, audit, sink, "done")
    assert (len(sink.acts), effect["provider_ref"], sink.rendered) == (1, "ref-1", 1)
    assert set(sink.keys) == {str(effect["effect_id"])}
    assert len(set(sink.calls)) == 1
    assert await outcomes(pool) == ["unknown", "not_sent", "unknown", "done"]
    assert len(await audit_rows(pool)) == 4


async def test_a_spent_key_is_not_used_again(pool: asyncpg.Pool, audit: Audit) -> None:
    """When the provider may have forgotten the key, a doubtful effect is unknown instead of performed again."""
    sink = KeyedSink("lost", *["later"] * 200, key_life_s=0.5)
    sink.timeout_s = 0.1
    effect = await performed(pool, audit, sink, "unknown", patience=EXACT)
    assert effect["reason"] == "key_expired"
    assert (len(sink.acts), effect["check_at"]) == (1, None)
    calls = len(sink.calls)
    async with running(ledger(pool, sink, audit, patience=EXACT)):
        await asyncio.sleep(0.3)  # time for a worker that would resend to do so
    assert len(sink.calls) == calls


async def test_a_key_that_was_surely_never_used_does_not_expire(pool: asyncpg.Pool, audit: Audit) -> None:
    """A provider that was away for longer than a key lives gets the effect under the same key all the same."""
    sink = KeyedSink(*["later"] * 10, "busy", *["later"] * 20, key_life_s=0.05)
    sink.timeout_s = 0.1
    effect = await performed(pool, audit, sink, "done", patience=EXACT)
    assert (len(sink.acts), effect["attempt"]) == (1, 32)


async def test_a_spent_key_is_followed_by_a_search(pool: asyncpg.Pool, audit: Audit) -> None:
    """Where the provider can also be asked, an effect whose key is spent is found and adopted."""
    sink = KeyedSearchableSink("lost", *["later"] * 200, key_life_s=0.5)
    sink.timeout_s = 0.1
    effect = await performed(pool, audit, sink, "done", patience=EXACT)
    assert (len(sink.acts), effect["provider_ref"]) == (1, "ref-1")
    assert await answers(pool) == ["found"]


async def test_another_payload_under_a_key_fails(pool: asyncpg.Pool, audit: Audit) -> None:
    """A provider that knows the key for other bytes refuses, and the effect fails instead of being forced through."""
    sink = KeyedSink("lost", "refused")
    effect = await performed(pool, audit, sink, "failed")
    assert effect["reason"] == "http:400"


@pytest.mark.parametrize("sink", [NaturalSink("lost", "later", "lost"), KeyedSink("hangs")], ids=["lost", "hangs"])
async def test_doing_it_again_changes_nothing(pool: asyncpg.Pool, audit: Audit, sink: NaturalSink | KeyedSink) -> None:
    """A natural or keyed sink is called until it answers, also after it hung: one act, done."""
    sink.timeout_s = 0.3
    effect = await performed(pool, audit, sink, "done", patience=EXACT)
    assert (len(sink.acts), effect["provider_ref"]) == (1, "ref-1")
    assert len(set(sink.calls)) == 1


async def test_a_refusal_after_doubt_leaves_a_natural_effect_unknown(pool: asyncpg.Pool, audit: Audit) -> None:
    """What may have happened is not said to have failed because a later attempt was refused."""
    sink = NaturalSink("lost", "refused")
    effect = await performed(pool, audit, sink, "unknown")
    assert (effect["reason"], await outcomes(pool)) == ("http:400", ["unknown", "failed"])


async def test_giving_up_on_what_may_have_happened_is_unknown(pool: asyncpg.Pool, audit: Audit) -> None:
    """Patience that ends after an ambiguous attempt does not make it a failure."""
    sink = NaturalSink("lost")
    assert (await performed(pool, audit, sink, "unknown", patience=WEARY))["reason"] == "http:reset"


async def test_a_searchable_sink_is_asked_and_what_it_did_adopted(pool: asyncpg.Pool, audit: Audit) -> None:
    """A lost answer is looked up by our reference, through its lag and its outages; nothing is performed again."""
    sink = SearchableSink("lost", search=Search("nothing", "down", "broken"))
    effect = await performed(pool, audit, sink, "done")
    assert (len(sink.acts), len(sink.calls), effect["provider_ref"]) == (1, 1, "ref-1")
    assert await answers(pool) == ["not_found", "cannot_tell", "cannot_tell", "found"]
    assert await outcomes(pool) == ["done"]
    assert await audit_rows(pool) == [("effect.attempt", "unknown", 1), ("effect.resolved", "done", 1)]


async def test_what_a_searchable_sink_never_saw_is_performed_again(pool: asyncpg.Pool, audit: Audit) -> None:
    """Not found twice, a lag apart, means that it did not happen: the stored bytes are performed, once more."""
    sink = SearchableSink("vanished")
    effect = await performed(pool, audit, sink, "done")
    assert (len(sink.acts), len(sink.calls), sink.search.asked, effect["attempt"]) == (1, 2, 2, 2)
    assert len(set(sink.calls)) == 1
    assert await audit_rows(pool) == [
        ("effect.attempt", "unknown", 1),
        ("effect.resolved", "not_sent", 1),
        ("effect.attempt", "done", 2),
    ]


async def test_each_attempt_is_looked_for_twice(pool: asyncpg.Pool, audit: Audit) -> None:
    """What was not found after one attempt says nothing of the next: it is asked for twice again."""
    sink = SearchableSink("vanished", "vanished", "lost", search=Search(*["nothing"] * 5))
    effect = await performed(pool, audit, sink, "done")
    assert (len(sink.acts), effect["attempt"], effect["provider_ref"]) == (1, 3, "ref-1")
    assert await answers(pool) == [*["not_found"] * 5, "found"]


async def test_without_any_help_a_person_must_find_out(pool: asyncpg.Pool, audit: Audit) -> None:
    """Of class none, a lost answer is unknown and nothing is asked or performed again."""
    sink = NoneSink("lost")
    effect = await performed(pool, audit, sink, "unknown")
    assert (effect["check_at"], len(sink.calls)) == (None, 1)


@pytest.mark.parametrize(
    ("sink", "calls"),
    [(NaturalSink("hangs"), 2), (KeyedSink("hangs"), 2), (SearchableSink("hangs"), 1)],
    ids=["natural", "keyed", "searchable"],
)
async def test_a_worker_lost_at_the_act_is_made_up_for(
    pool: asyncpg.Pool, audit: Audit, sink: NaturalSink | KeyedSink | SearchableSink, calls: int
) -> None:
    """What a dead worker may have done is found out as its class allows: done, and one act."""
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)) as task:
        await until(lambda: acted(sink))
        await lose(task)
    await expire(pool)
    sink.timeout_s = 0.5
    async with running(ledger(pool, sink, audit, patience=EXACT)):
        effect = await settled(pool, "done")
    assert (len(sink.acts), len(sink.calls), effect["provider_ref"]) == (1, calls, "ref-1")
    rows = await audit_rows(pool)
    assert rows[0] == ("effect.attempt", "unknown", 1)
    assert len(rows) == 2


async def acted(sink: Provider) -> bool:
    return bool(sink.acts)


async def test_a_worker_lost_between_answer_and_settlement_is_made_up_for(pool: asyncpg.Pool, audit: Audit) -> None:
    """An answer that was written on the attempt and not on the effect is finished by whoever asks next."""
    sink = SearchableSink("lost", search=Search(*["down"] * 3))
    sink.search.settle_lag_s = sink.settle_lag_s = 0.2
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)) as task:
        await settled(pool, "unknown")
        await lose(task)
    await pool.execute("update effect_attempt set outcome = 'done', detail = 'ref-1'")
    async with running(ledger(pool, sink, audit)):
        effect = await settled(pool, "done")
    assert effect["provider_ref"] == "ref-1"
    assert await audit_rows(pool) == [("effect.attempt", "unknown", 1), ("effect.resolved", "done", 1)]


async def test_an_erased_case_is_not_asked_about(pool: asyncpg.Pool, audit: Audit) -> None:
    """Without the case's key there is nothing to ask with: the effect stays unknown and is left to people."""
    sink = SearchableSink("lost", search=Search(*["down"] * 500))
    event = await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "unknown")
        await pool.execute("update case_key set wrapped = null, erased_at = now() where case_id = $1", event.case_id)
        await pool.execute("update effect set check_at = now()")
        await until(lambda: pool.fetchval("select bool_and(check_at is null) from effect"))
    assert await states(pool) == ["unknown"]
    last = await pool.fetchrow("select answer, detail from effect_check order by n desc limit 1")
    assert tuple(last) == ("cannot_tell", "erased")


async def test_a_late_answer_is_kept_although_the_search_did_not_find_it(pool: asyncpg.Pool, audit: Audit) -> None:
    """The worker that was given up brings its answer after the second attempt: both acts are on record."""
    sink = SearchableSink("vanished")
    effect = await performed(pool, audit, sink, "done")
    from streams.effects.effect import Verdict
    from streams.effects.store import EffectStore

    owner = await pool.fetchval("select owner from effect_attempt where attempt = 1")
    store = EffectStore(pool, owner, 1.0)
    assert await store.conclude(effect["effect_id"], 1, Verdict("done", "ref-late")) == "not_sent"
    assert await outcomes(pool) == ["done", "done"]
    assert (await effects(pool))[0]["provider_ref"] == "ref-1"


async def test_a_worker_lost_after_a_search_that_found_nothing_leaves_it_to_another(
    pool: asyncpg.Pool, audit: Audit
) -> None:
    """An answer written as not sent, and nothing more, is finished by whoever asks next: the effect is performed."""
    sink = SearchableSink("vanished", search=Search(*["down"] * 3))
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)) as task:
        await settled(pool, "unknown")
        await lose(task)
    await pool.execute("update effect_attempt set outcome = 'not_sent', detail = 'not_found_twice'")
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "done")
    assert len(sink.acts) == 1


@pytest.mark.parametrize("promised", [SinkClass.KEYED, SinkClass.SEARCHABLE])
async def test_a_sink_must_keep_what_its_class_promises(pool: asyncpg.Pool, audit: Audit, promised: SinkClass) -> None:
    """A sink that says keyed or searchable and cannot is refused at the start."""
    sink = ControlledSink()
    sink.sink_class = promised
    with pytest.raises(Misconfigured, match=promised.value):
        ledger(pool, sink, audit, owner=uuid4())
