"""Questions that arrive together go to the silo together, each once, and none spoils another's answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cache.definition import TableTag
from cache.group import Group
from cache.loaded import Loaded
from cache.loader import AnswerTooLarge, Question
from cache.silo import SiloUnavailable
from cache.values import VALUE_TYPES
from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, BY_UPRN, World, address, lookup, rows, until
from tests.integration.tcp_gate import Gate

CRABTREE = "BN15 9JB"
SLOW = lookup(
    "slowly",
    sql="select uprn::text as uprn, address from address where postcode = :postcode and pg_sleep(0.3) is not null",
)
DIVIDING = lookup(
    "dividing",
    parameters={"uprn": VALUE_TYPES["uprn"]},
    sql="select (10 / (:uprn - 13))::text as uprn, 'x' as address",
    tags=BY_UPRN.tags,
)


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url, statement_timeout_ms=1500)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "One"))
    made.start()
    await made.settled()
    yield made
    await made.stop()


def _queries(world: World, outcome: str = "answered") -> float:
    return world.counted("silogate_silo_loads_total", silo="town", outcome=outcome)


async def test_many_callers_of_one_cold_key_cause_one_query(world: World) -> None:
    """However many ask, the silo is asked once."""
    answers = await asyncio.gather(*(world.ask(SLOW, CRABTREE) for _ in range(500)))
    assert {answer.results for answer in answers} == {answers[0].results}
    assert len(rows(answers[0])) == 1
    assert _queries(world) == 1


async def test_a_leader_that_is_cancelled_takes_nobody_with_it(world: World) -> None:
    """The first caller leaves; the others get the answer that it began, from one query."""
    leader = asyncio.create_task(world.ask(SLOW, CRABTREE))
    await asyncio.sleep(0.1)
    others = [asyncio.create_task(world.ask(SLOW, CRABTREE)) for _ in range(50)]
    await asyncio.sleep(0.05)
    leader.cancel()
    for other in others[::2]:
        other.cancel()
    answers = await asyncio.gather(*others[1::2])
    assert all(len(rows(answer)) == 1 for answer in answers)
    assert _queries(world) == 1


async def test_a_load_nobody_waits_for_any_more_still_fills(world: World) -> None:
    """The work was done; the next caller finds it in Redis."""
    caller = asyncio.create_task(world.ask(SLOW, CRABTREE))
    await asyncio.sleep(0.1)
    caller.cancel()

    async def filled() -> bool:
        return len(await world.entries()) == 1

    await until(filled)
    assert (await world.ask(SLOW, CRABTREE)).source == "hit"


async def test_cold_keys_that_arrive_together_share_queries(world: World) -> None:
    """Three hundred keys at once are a handful of queries of at most two hundred keys, in one snapshot each."""
    await world.put("address", *(address(n, CRABTREE, f"House {n}") for n in range(100, 400)))
    await world.settled()
    answers = await asyncio.gather(*(world.ask(BY_UPRN, n) for n in range(100, 500)))
    assert [answer.verdict for answer in answers] == ["found"] * 300 + ["not_found"] * 100
    assert [rows(answer)[0]["address"] for answer in answers[:300]] == [f"House {n}" for n in range(100, 400)]
    assert 2 <= _queries(world) <= 8


@pytest.mark.parametrize("batched", [True, False], ids=["in a batch", "one by one"])
async def test_a_poisonous_key_fails_alone(world: World, *, batched: bool) -> None:
    """One value that the SQL cannot take fails its own question; the rest of its batch is answered."""
    world.group(DIVIDING).batched = batched
    answers = await asyncio.gather(*(world.ask(DIVIDING, n) for n in range(11, 16)), return_exceptions=True)
    assert isinstance(answers[2], SiloUnavailable)
    assert "22012" in str(answers[2])
    assert all(not isinstance(answer, BaseException) for answer in answers[:2] + answers[3:])
    assert world.counted("silogate_silo_poisoned_keys_total", silo="town", sqlstate="22012") == 1


async def test_a_poisonous_key_among_many_costs_few_queries(world: World) -> None:
    """A hundred keys with one that spoils them all are about twice the logarithm of that, and all others answered."""
    answers = await asyncio.gather(*(world.ask(DIVIDING, n) for n in range(1, 101)), return_exceptions=True)
    assert [n for n, answer in enumerate(answers, 1) if isinstance(answer, BaseException)] == [13]
    assert _queries(world, "poisoned") + _queries(world) <= 1 + 2 * 7


@pytest.mark.parametrize("batched", [True, False], ids=["in a batch", "one by one"])
async def test_a_value_that_the_driver_cannot_write_fails_alone(world: World, *, batched: bool) -> None:
    """It never reaches the server, and the connection is as good as before."""
    group, load = world.group(BY_UPRN), world.silo.loader.load
    group.batched = batched
    questions = [Question(f"{n:032x}", (value,), ()) for n, value in enumerate((1, 2**70, 3))]
    found = await asyncio.gather(*(load(group, question) for question in questions), return_exceptions=True)
    assert [type(one) for one in found] == [Loaded, SiloUnavailable, Loaded]
    assert world.counted("silogate_silo_server_errors_total", silo="town", server=world.silo._primary.label) == 0


async def test_one_by_one_answers_are_the_same_and_each_says_when(world: World) -> None:
    """While rows change, every answer of a pipeline is right for the position that it bears.

    One that another had left in Redis a moment before bears the position of Redis, which may be behind it.
    """
    apart = replace(BY_UPRN, name="apart", ttl_s=0.001, soft_ttl_s=0.001, stale_for_s=0)
    world.group(apart).batched = False
    changed = {n: await world.put("address", address(n, CRABTREE, "0")) for n in range(10, 30)}
    versions = {n: [(token.seq, "0")] for n, token in changed.items()}

    async def change() -> None:
        for version in range(1, 40):
            n = 10 + version % 20
            versions[n].append(((await world.put("address", address(n, CRABTREE, str(version)))).seq, str(version)))

    changing = asyncio.create_task(change())
    answers = []
    while not changing.done():
        answers += await asyncio.gather(*(world.ask(apart, n) for n in versions))
    await changing
    loaded = 0
    for n, answer in zip([*versions] * (len(answers) // 20), answers, strict=True):
        right = max(seq for seq, _ in versions[n] if seq <= answer.as_of.seq)
        shown = [seq for seq, text in versions[n] if text == rows(answer)[0]["address"]]
        assert shown == [right] if answer.source != "hit" else max(shown) >= right, answer
        loaded += answer.source != "hit"
    assert loaded > 100
    whole = await asyncio.gather(*(world.ask(BY_UPRN, n) for n in versions))
    assert [rows(one) for one in await asyncio.gather(*(world.ask(apart, n) for n in versions))] == [
        rows(one) for one in whole
    ]


async def test_absent_keys_fill_redis_only_up_to_the_cap(database: Database, redis_url: str) -> None:
    """Each is answered; what there is is kept as before."""
    world = World(database, redis_url, negatives_per_s=0.001, negatives_at_once=5)
    await world.prepare()
    await world.put("address", address(1, CRABTREE, "One"))
    world.start()
    try:
        await world.settled()
        answers = await asyncio.gather(*(world.ask(BY_UPRN, n) for n in range(100, 150)))
        assert {answer.verdict for answer in answers} == {"not_found"}
        await world.counts(45, "silogate_cache_fills_total", silo="town", outcome="negative_capped")
        await world.stored(BY_UPRN, 1)
        assert len(await world.entries()) == 6
        assert (await world.ask(BY_UPRN, 149)).verdict == "not_found"
    finally:
        await world.stop()


@pytest.mark.parametrize("batched", [True, False], ids=["in a batch", "one by one"])
async def test_a_slow_key_fails_alone(world: World, *, batched: bool) -> None:
    """The statement time-out ends a batch; its keys are then asked apart, and only the slow one has no answer."""
    sleepy = lookup(
        "sleepy",
        parameters={"uprn": VALUE_TYPES["uprn"]},
        sql="select uprn::text as uprn, address from address where uprn = :uprn"
        " and case when :uprn = 3 then pg_sleep(5) end is null and :uprn > 0",
        tags=BY_UPRN.tags,
    )
    world.group(sleepy).batched = batched
    await world.put("address", address(2, CRABTREE, "Two"), address(3, CRABTREE, "Three"))
    await world.settled()
    answers = await asyncio.gather(*(world.ask(sleepy, n) for n in (1, 2, 3)), return_exceptions=True)
    assert isinstance(answers[2], SiloUnavailable)
    assert all(not isinstance(answer, BaseException) for answer in answers[:2])
    assert world.counted("silogate_silo_poisoned_keys_total", silo="town", sqlstate="57014") == 1


async def test_an_answer_with_too_many_rows_is_refused_and_not_cut(world: World) -> None:
    """A list with its end missing would look complete."""
    generous = lookup(
        "generous",
        parameters={"n": VALUE_TYPES["integer"]},
        sql="select i::text as uprn, 'x' as address from generate_series(1, :n) i",
        tags={"address": TableTag()},
    )
    assert len(rows(await world.ask(generous, 1000))) == 1000
    with pytest.raises(AnswerTooLarge):
        await world.ask(generous, 1001)


async def test_errors_and_logs_hold_no_value_that_was_asked_by(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Postgres repeats a bad value in its message; nothing of that gets out of here."""
    casting = lookup(
        "casting",
        parameters={"text": VALUE_TYPES["text"]},
        sql="select (:text)::int::text as uprn, '' as address",
        tags={"address": TableTag()},
    )
    secret = "QQ123456C of Crabtree Lane"
    with caplog.at_level(logging.DEBUG), pytest.raises(SiloUnavailable) as caught:
        await world.ask(casting, secret)
    error: BaseException | None = caught.value
    while error is not None:
        assert "QQ123456C" not in str(error)
        error = error.__cause__ or error.__context__
    assert "QQ123456C" not in caplog.text


@pytest.mark.parametrize("ahead_s", [-3600, 3600], ids=["behind", "ahead"])
async def test_the_age_of_the_primary_s_answer_is_measured_by_one_clock(world: World, ahead_s: float) -> None:
    """How this process's clock and Postgres's differ makes an answer neither new nor old: it was asked a moment ago."""

    def clock() -> float:
        return time.time() + ahead_s

    group = Group(SLOW, world.silo, world.store, world.ring, world.metrics, clock=clock)
    answer = await group.answer({"postcode": CRABTREE}, timeout_s=5)
    assert 0.3 <= answer.age_s < 5
    assert answer.staleness_bound_ms is not None
    assert answer.as_of.time is not None
    assert abs((dt.datetime.now(dt.UTC) - answer.as_of.time).total_seconds()) < 60


async def test_a_deadline_is_kept_for_each_caller(world: World) -> None:
    """One caller's short deadline ends that caller; another waits on for the same load."""
    patient = asyncio.create_task(world.ask(SLOW, CRABTREE, timeout_s=5))
    await asyncio.sleep(0.05)
    with pytest.raises(SiloUnavailable):
        await world.ask(SLOW, CRABTREE, timeout_s=0.05)
    assert (await patient).verdict == "found"


async def test_a_replica_that_keeps_failing_is_left_out_and_taken_back(database: Database, redis_url: str) -> None:
    """After three errors in a row it is asked last, until it answers again; the last one is never ejected."""
    gates = [Gate(database.url), Gate(database.url)]
    for gate in gates:
        await gate.open()
    world = World(database, redis_url, replica_urls=[gate.url for gate in gates])
    await world.prepare()
    world.start()
    uncached = replace(BY_POSTCODE, ttl_s=0.001, soft_ttl_s=0.001, stale_for_s=0)

    def ejected() -> list[float]:
        return [
            world.counted("silogate_silo_server_ejected", silo="town", server=gate.url.split("@")[1].split("/")[0])
            for gate in gates
        ]

    try:
        await world.settled()
        await gates[0].shut()

        async def one_out() -> bool:
            await world.ask(uncached, CRABTREE)
            return ejected() == [1.0, 0.0]

        await until(one_out)
        await gates[1].shut()
        for _ in range(10):
            assert (await world.ask(uncached, CRABTREE)).verdict == "not_found"  # the primary stands in
        assert ejected() == [1.0, 0.0]
        await gates[0].open()

        async def back() -> bool:
            return ejected() == [0.0, 0.0]

        await until(back)
    finally:
        await world.stop()
        for gate in gates:
            await gate.shut()
