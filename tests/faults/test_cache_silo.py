"""Whatever happens to a silo's servers and to those who ask: an honest answer in time, from somewhere, or none."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import cache.loader
from cache.definition import LookupDefinition
from cache.group import Answer
from cache.loader import SiloUnavailable
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.faults.postgres_gate import PostgresGate
from tests.integration.cache_world import (
    BY_UPRN,
    CLAIM_DETAILS,
    World,
    address,
    claim,
    lookup,
    rows,
    until,
)
from tests.integration.tcp_gate import Gate

pytestmark = pytest.mark.faults

CRABTREE = "BN15 9JB"
UNKEPT = replace(BY_UPRN, name="not-kept", ttl_s=0.001, soft_ttl_s=0.001, stale_for_s=0)
SLOW = lookup(
    "slowly",
    sql="select uprn::text as uprn, address from address where postcode = :postcode and pg_sleep(0.3) is not null",
)
PATIENCE: dict[str, Any] = {"statement_timeout_ms": 667}  # as `serve` sets it: a third of two seconds


@asynccontextmanager
async def _world(database: Database, redis_url: str, *, houses: int = 1, **options: Any) -> AsyncIterator[World]:
    """A running silo with so many houses, all of them on the replica too."""
    world = World(database, redis_url, **(PATIENCE | options))
    await world.prepare()
    await world.put("address", *(address(n, CRABTREE, f"House {n}") for n in range(1, houses + 1)))
    await _replayed(database)
    world.start()
    try:
        await world.settled()
        yield world
    finally:
        await world.stop()


async def _replayed(database: Database) -> None:
    primary, replica = await asyncpg.connect(database.url), await asyncpg.connect(database.replica_url)
    try:
        wanted = await primary.fetchval("select pg_current_wal_lsn()::text")

        async def there() -> bool:
            return bool(await replica.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", wanted))

        await until(there)
    finally:
        await primary.close()
        await replica.close()


async def _timed(world: World, n: int) -> float:
    """Seconds until house `n` is found."""
    started = time.monotonic()
    assert rows(await world.ask(UNKEPT, n, timeout_s=2))[0]["address"] == f"House {n}"
    return time.monotonic() - started


async def _from_a_replica(world: World) -> bool:
    loaded = await world.silo.fetch_batch(world.group(UNKEPT), [(1,)])
    return not loaded.from_primary


@contextmanager
def _frozen(stack: Stack, server: str) -> Iterator[None]:
    """Every process of a Postgres stopped: its sockets stay open, and nothing answers."""
    first = json.loads((stack.root / "run" / f"{server}.pid").read_text())["pid"]
    stopped: list[int] = []
    try:
        for pid in _family(first):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> Iterator[int]:
    # The parent first: stopped, it has no more children. One that ended meanwhile is none of them.
    yield pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield from _family(int(stat.parent.name))


async def test_a_replica_that_is_down_is_stepped_over(database: Database, redis_url: str, stack: Stack) -> None:
    """The primary answers; after three errors the replica is asked no more, until it is back."""
    async with _world(database, redis_url, houses=100, replica_urls=[database.replica_url]) as world:
        assert await _from_a_replica(world)
        await stack.control("replica", "stop")
        try:
            assert max([await _timed(world, n) for n in range(1, 101)]) < 1
            assert not await _from_a_replica(world)
            assert world.silo._servers.is_aside(world.silo._servers.replicas[0])
        finally:
            await stack.control("replica", "start")
        await until(lambda: _from_a_replica(world), within_s=5)


async def test_a_hung_replica_costs_a_few_questions_a_little(database: Database, redis_url: str, stack: Stack) -> None:
    """The first wait until a second server is asked; soon nobody waits at all; once it is back it is used again."""
    async with _world(database, redis_url, houses=100, replica_urls=[database.replica_url]) as world:
        assert await _from_a_replica(world)
        with _frozen(stack, "replica"):
            took = []
            for n in range(1, 101):
                took.append(await _timed(world, n))
                await asyncio.sleep(0.03)
        assert max(took) < 1.2, "no one waits for it twice"
        assert sum(one > 0.15 for one in took) <= 10
        assert sum(took[-30:]) < 3
        await until(lambda: _from_a_replica(world), within_s=5)


async def test_with_all_replicas_down_the_primary_answers(database: Database, redis_url: str, stack: Stack) -> None:
    """Both have failed, neither is left out for good: the first that is back is asked again."""
    gate = Gate(database.url)
    await gate.open()
    async with _world(database, redis_url, replica_urls=[database.replica_url, gate.url]) as world:
        await gate.shut()
        await stack.control("replica", "kill")
        try:
            for _ in range(30):
                await _timed(world, 1)
            assert not await _from_a_replica(world)
        finally:
            await stack.control("replica", "start")
        await until(lambda: _from_a_replica(world), within_s=5)


async def test_with_the_primary_down_a_replica_answers_with_its_age(
    database: Database, redis_url: str, stack: Stack
) -> None:
    """Hits and misses alike: the time that they were known to be the newest stands still, and the age grows."""
    async with _world(database, redis_url, houses=3, replica_urls=[database.replica_url]) as world:
        await world.stored(BY_UPRN, 1)
        await stack.control("postgres", "stop")
        try:
            before = (await world.ask(BY_UPRN, 1)).age_s

            async def older() -> bool:
                return (await world.ask(BY_UPRN, 1)).age_s > before + 2

            await until(older)
            for answer in (await world.ask(BY_UPRN, 1), await world.ask(BY_UPRN, 2), await world.ask(UNKEPT, 3)):
                assert answer.verdict == "found"
                assert answer.age_s > 2
                assert answer.staleness_bound_ms is not None
                assert answer.staleness_bound_ms >= answer.age_s * 1000
            absent = await world.ask(UNKEPT, 99)
            assert absent.verdict == "not_found"
            assert absent.age_s > 2
        finally:
            await stack.control("postgres", "start")
        await world.put("address", address(4, CRABTREE, "House 4"))
        await world.settled()
        assert (await world.ask(UNKEPT, 1)).age_s < 2


async def test_a_replica_that_lags_by_a_minute_says_so(
    database: Database, redis_url: str, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer has its own as-of, a minute old, and no bound; who knows of a change is answered by the primary."""
    async with _world(database, redis_url, replica_urls=[database.replica_url]) as world:
        async with world.connect() as connection:
            await connection.execute("update progress set applied_at = now() - interval '60 s'")
        await _replayed(database)
        await stack.control("replica", "pause")
        try:
            token = await world.put("address", address(1, CRABTREE, "House 1, renamed"), address(2, CRABTREE, "New"))
            await world.settled()
            behind = await world.ask(BY_UPRN, 1)
            assert (behind.verdict, rows(behind)[0]["address"]) == ("found", "House 1")
            assert behind.as_of.seq < token.seq
            assert behind.age_s >= 60
            assert behind.staleness_bound_ms is None
            absent = await world.ask(BY_UPRN, 2)
            assert absent.as_of.seq < token.seq
            assert absent.age_s >= 60
            assert await world.entries() == {}, "an answer that a change has overtaken is not kept"
            for n, known in ((1, "House 1, renamed"), (2, "New")):
                newest = await world.ask(BY_UPRN, n, min_as_of=token)
                assert (newest.source, rows(newest)[0]["address"]) == ("bypass", known)
                assert newest.as_of.seq >= token.seq

            monkeypatch.setattr(world.silo._servers._tip, "_clock", lambda: time.monotonic() + 60)
            label = world.silo._servers.replicas[0].label

            async def shown() -> bool:
                return world.counted("silogate_silo_lag_seconds", silo="town", server=label) >= 60

            await until(shown)
            assert world.counted("silogate_silo_lag_changes", silo="town", server=label) == 1
        finally:
            await stack.control("replica", "resume")

        async def caught_up() -> bool:
            return world.counted("silogate_silo_lag_seconds", silo="town", server=label) == 0

        await until(caught_up)
        assert rows(await world.stored(BY_UPRN, 1))[0]["address"] == "House 1, renamed"


@pytest.mark.parametrize("batched", [True, False], ids=["in a batch", "one by one"])
async def test_a_connection_reset_in_mid_row_is_no_answer(database: Database, redis_url: str, *, batched: bool) -> None:
    """Half a row is nothing: another server answers all; with no other it is an honest refusal, once."""
    gate = PostgresGate(database.url)
    await gate.open()
    asked = range(1, 11)
    try:
        for urls in ({"replica_urls": [gate.url]}, {"silo_url": gate.url}):
            async with _world(database, redis_url, houses=10, **urls) as world:
                world.group(UNKEPT).batched = batched
                await _timed(world, 1)
                gate.cut_next_row("sg_answer")
                cuts = gate.cuts
                found = await asyncio.gather(*(world.ask(UNKEPT, n) for n in asked), return_exceptions=True)
                assert gate.cuts == cuts + 1
                refused = {type(one) for one in found if not isinstance(one, Answer)}
                assert refused == ({SiloUnavailable} if "silo_url" in urls else set())
                again = await asyncio.gather(*(world.ask(UNKEPT, n) for n in asked))
                for one, n in zip([*found, *again], [*asked, *asked], strict=True):
                    assert not isinstance(one, Answer) or rows(one)[0]["address"] == f"House {n}"
                async with world.connect() as connection:
                    await connection.execute("drop schema silo_town cascade")
    finally:
        await gate.shut()


@pytest.mark.parametrize("moment_s", [0.0, 0.15], ids=["before the query", "during the query"])
async def test_five_hundred_callers_of_one_cold_key_are_one_query(
    database: Database, redis_url: str, moment_s: float
) -> None:
    """Counted where Postgres gets them; the leader is cancelled, before or after it has caused it."""
    gate = PostgresGate(database.url)
    await gate.open()
    try:
        async with _world(database, redis_url, silo_url=gate.url) as world:
            callers = [asyncio.create_task(world.ask(SLOW, CRABTREE)) for _ in range(500)]
            await asyncio.sleep(moment_s)
            callers[0].cancel()
            answers = await asyncio.gather(*callers[1:])
            assert {answer.results for answer in answers} == {answers[0].results}
            assert [row["address"] for row in rows(answers[0])] == ["House 1"]
            assert callers[0].cancelled()
            assert gate.count("sg_answer") == 1
            assert world.counted("silogate_silo_loads_total", silo="town", outcome="answered") == 1
    finally:
        await gate.shut()


async def test_a_hung_silo_takes_nothing_of_another(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one hangs with all its places taken, the other answers as ever; what does not fit is refused at once."""
    monkeypatch.setattr(cache.loader, "_WAITING_KEYS", 1000)
    gate = Gate(database.url)
    await gate.open()
    async with _world(database, redis_url, houses=100) as well:
        ill = World(database, redis_url, silo_url=gate.url, **PATIENCE)
        ill.start()
        try:
            assert (await ill.ask(UNKEPT, 1)).verdict == "found"
            usual = sorted([await _timed(well, n) for n in range(1, 101)])
            gate.hold()
            started = time.monotonic()
            asked = [asyncio.create_task(ill.ask(UNKEPT, n, timeout_s=2)) for n in range(1000, 5000)]

            async def stuck() -> bool:
                return 1 <= ill.counted("silogate_silo_in_flight", silo="town") <= 8

            await until(stuck)
            meanwhile = sorted([await _timed(well, 1 + n % 100) for n in range(300)])
            assert meanwhile[-10] < max(0.2, 20 * usual[50])
            assert meanwhile[-1] < 1.5, "nobody waits for the time-out of the other's servers"
            assert gate.connections <= 8 + 2 + 1
            refused = await asyncio.gather(*asked, return_exceptions=True)
            assert time.monotonic() - started < 2 + 5
            assert {type(one) for one in refused} == {SiloUnavailable}
            assert sum("too many" in str(one) for one in refused) >= 1000
            assert ill.counted("silogate_silo_limit", silo="town") <= 2
            await gate.open()

            async def back() -> bool:
                try:
                    return (await ill.ask(UNKEPT, 1)).verdict == "found"
                except SiloUnavailable:
                    return False

            await until(back, within_s=5)
        finally:
            await ill.stop()
            await gate.shut()


CANCELLED, _AT_ONCE = 18_000, 250


@pytest.mark.timeout(300)
async def test_eighteen_thousand_cancelled_reads_leave_nothing_and_nobody_gets_anothers_answer(
    database: Database, redis_url: str
) -> None:
    """Cut off at any point of the way, by a cancelled task or by a deadline of a few milliseconds, among whole ones."""
    chance = random.Random(18_000)
    brief = [replace(one, ttl_s=0.05, soft_ttl_s=0.02) for one in (BY_UPRN, CLAIM_DETAILS)]
    single = replace(brief[0], name="one-by-one")
    async with _world(database, redis_url, houses=300, replica_urls=[database.replica_url]) as world:
        await world.put("claim", *(claim(f"C{n}", _nino(n), name=f"House {n}") for n in range(1, 301)))
        await world.settled()
        world.group(single).batched = False
        before = asyncio.all_tasks()
        cut, whole = 0, 0
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one() -> None:
            nonlocal cut, whole
            async with gate:
                n = chance.randrange(1, 331)
                task = asyncio.create_task(_answer_of(world, chance.choice([*brief, single]), n, chance.random()))
                if chance.random() < 0.7:
                    asyncio.get_running_loop().call_later(chance.random() ** 2 * 0.1, task.cancel)
                try:
                    await task
                    whole += 1
                except (asyncio.CancelledError, SiloUnavailable):
                    cut += 1

        used_s = time.process_time()
        while cut < CANCELLED:
            await asyncio.gather(*(one() for _ in range(2000)))
        assert time.process_time() - used_s < 12  # three times what they take of this process's CPU
        assert whole > 1000

        async def idle() -> bool:
            return not asyncio.all_tasks() - before - {asyncio.current_task()} and _left_over(world) == {}

        await until(idle)
        assert rows(await world.ask(brief[0], 7))[0]["address"] == "House 7"


def _nino(n: int) -> str:
    return f"AB{n:06}C"


async def _answer_of(world: World, definition: LookupDefinition, n: int, chance: float) -> None:
    """Return once the right answer has come; houses above 300 do not exist."""
    timeout_s = chance**2 * 0.2 if chance < 0.5 else 5.0
    by_claim = definition.name == CLAIM_DETAILS.name
    answer = await world.ask(definition, _nino(n) if by_claim else n, timeout_s=timeout_s)
    wanted = [f"House {n}"] if n <= 300 else []
    assert [row["name" if by_claim else "address"] for row in rows(answer)] == wanted


def _left_over(world: World) -> dict[str, int]:
    """What still waits, is away, or is taken and not given back."""
    loader = world.silo.loader
    servers = (world.silo._servers.primary, *world.silo._servers.replicas)
    pools = [server._pool for server in servers if server._pool is not None]
    found = {
        "flights": len(loader._flights),
        "callers": loader._callers,
        "questions": len(loader._live) + len(loader._refreshes),
        "batches": loader._limit.in_flight,
        "asked of a server": sum(server.in_flight for server in servers),
        "connections": sum(pool.get_size() - pool.get_idle_size() for pool in pools),
    }
    return {name: count for name, count in found.items() if count}
