"""Answers through Redis follow the rows: what changed is never served from before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from cache.group import AsOf
from cache.silo import SiloUnavailable
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.integration.cache_world import (
    BY_POSTCODE,
    BY_UPRN,
    CLAIM_DETAILS,
    CLAIM_OPEN,
    CONTAINING,
    NEAR,
    World,
    address,
    claim,
    lookup,
    rows,
    until,
)
from tests.integration.tcp_gate import Gate

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"
NINO, OTHER_NINO = "QQ123456C", "QQ654321A"


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url)
    await made.prepare()
    made.start()
    yield made
    await made.stop()


async def test_an_answer_is_loaded_once_and_then_read_from_redis(world: World) -> None:
    """The second question is a hit with the same rows, the as-of of the silo and a measured bound."""
    await world.put("address", address(1, CRABTREE, "1 Crabtree Lane"), address(3, CRABTREE, "3 Crabtree Lane"))
    state = await world.settled()
    first = await world.ask(BY_POSTCODE, "bn159jb")
    again = await world.stored(BY_POSTCODE, "BN15 9JB")
    assert [row["uprn"] for row in rows(first)] == ["1", "3"]
    assert (first.verdict, again.verdict, again.reason) == ("found", "found", None)
    assert again.results == first.results
    assert again.etag == first.etag
    assert (again.as_of.epoch, again.as_of.seq) == (state.epoch, state.seq)
    assert again.staleness_bound_ms is not None
    assert again.staleness_bound_ms < 10_000


async def test_a_row_that_moves_changes_both_answers(world: World) -> None:
    """A change touches what the row was found by before and what it is found by now."""
    await world.put("address", address(1, CRABTREE, "The Lodge"), address(2, ELM, "Elm House"))
    await world.settled()
    assert len(rows(await world.stored(BY_POSTCODE, CRABTREE))) == 1
    assert len(rows(await world.stored(BY_POSTCODE, ELM))) == 1

    await world.put("address", address(1, ELM, "The Lodge"))
    await world.settled()

    left, entered = await world.ask(BY_POSTCODE, CRABTREE), await world.ask(BY_POSTCODE, ELM)
    assert (left.verdict, rows(left)) == ("not_found", [])
    assert [row["uprn"] for row in rows(entered)] == ["1", "2"]


async def test_an_absent_key_is_remembered_until_a_row_has_it(world: World) -> None:
    """Not found is an entry as well, and the insert of such a row ends it."""
    await world.settled()
    assert (await world.ask(BY_UPRN, "000060001449")).verdict == "not_found"
    assert (await world.stored(BY_UPRN, 60001449)).verdict == "not_found"

    await world.put("address", address(60001449, CRABTREE, "Beach Green"))
    await world.settled()

    found = await world.ask(BY_UPRN, 60001449)
    assert found.verdict == "found"
    assert rows(found) == [{"uprn": "60001449", "postcode": CRABTREE, "address": "Beach Green"}]


async def test_a_row_removed_is_gone_from_every_answer(world: World) -> None:
    """Deleting a row touches each lookup that showed it: by key, by index, by place and over the whole table."""
    await world.put("address", address(7, CRABTREE, "Seven Sisters", 518072.0, 103649.0))
    await world.settled()
    questions = [(BY_UPRN, (7,)), (BY_POSTCODE, (CRABTREE,)), (NEAR, (518000, 103600, 200)), (CONTAINING, ("Sisters",))]
    for definition, values in questions:
        assert (await world.stored(definition, *values)).verdict == "found"
    await world.remove("address", 7)
    await world.settled()
    for definition, values in questions:
        assert (await world.ask(definition, *values)).verdict == "not_found"


async def test_what_is_near_follows_a_row_that_comes_near(world: World) -> None:
    """A circle's answer hangs on its tiles, also on one that the circle only just touches."""
    await world.put("address", address(1, CRABTREE, "Inside", 518500, 104500), address(2, ELM, "Far", 530000, 104500))
    await world.settled()
    near = await world.stored(NEAR, 518990, 104500, 600)
    assert [row["uprn"] for row in rows(near)] == ["1"]
    await world.put("address", address(2, ELM, "Far", 519500, 104500))  # the next tile to the east
    await world.settled()
    assert [row["uprn"] for row in rows(await world.ask(NEAR, 518990, 104500, 600))] == ["1", "2"]


async def test_an_unrelated_change_leaves_an_entry_alone_and_moves_its_as_of(world: World) -> None:
    """An entry that nothing has touched is as new as the silo is."""
    await world.put("address", address(1, CRABTREE, "One"))
    await world.settled()
    before = await world.stored(BY_POSTCODE, CRABTREE)
    token = await world.put("address", address(2, ELM, "Two"))
    await world.settled()
    after = await world.ask(BY_POSTCODE, CRABTREE)
    assert after.source == "hit"
    assert after.as_of.seq == token.seq > before.as_of.seq


async def test_a_parameter_left_out_makes_the_answer_hang_on_the_whole_table(world: World) -> None:
    """Null is a value like any other, but no index says which rows have to do with it."""
    optional = lookup(
        "maybe-by-postcode",
        sql="select uprn::text as uprn, address from address where :postcode is null or postcode = :postcode",
    )
    ask = world.group(optional).answer
    await world.put("address", address(1, CRABTREE, "One"))
    await world.settled()

    async def hit() -> bool:
        answer = await ask({"postcode": None}, timeout_s=5)
        assert len(rows(answer)) == 1
        return answer.source == "hit"

    await until(hit)
    await world.put("address", address(2, ELM, "Two"))
    await world.settled()
    assert len(rows(await ask({"postcode": None}, timeout_s=5))) == 2
    assert len(rows(await ask({"postcode": ELM}, timeout_s=5))) == 1


async def test_exists_says_only_whether(world: World) -> None:
    """The shape `exists` answers one row or none, and follows the rows like any other."""
    await world.settled()
    assert (await world.stored(CLAIM_OPEN, NINO)).verdict == "not_found"
    await world.put("claim", claim("C1", NINO), claim("C2", NINO))
    await world.settled()
    found = await world.ask(CLAIM_OPEN, "qq 12 34 56 c")
    assert (found.verdict, rows(found)) == ("found", [{"exists": True}])
    await world.put("claim", claim("C1", NINO, "closed"), claim("C2", NINO, "closed"))
    await world.settled()
    assert (await world.ask(CLAIM_OPEN, NINO)).verdict == "not_found"


async def test_personal_values_are_nowhere_in_redis(world: World) -> None:
    """Neither keys, tags, states nor entries of a personal lookup hold the value asked by or the answer."""
    await world.put("claim", claim("C1", NINO, name="Ottoline Featherstonehaugh"))
    await world.settled()
    assert rows(await world.stored(CLAIM_DETAILS, NINO)) == [{"name": "Ottoline Featherstonehaugh"}]
    everything = b""
    async for key in world.redis.scan_iter(count=1000):
        everything += key + (await world.redis.dump(key) or b"")
    for secret in (NINO, "Ottoline", "Featherstonehaugh", "123456"):
        assert secret.encode() not in everything
    tags = await world.tags()
    assert tags
    assert all(tag.startswith(b"=") or len(bytes.fromhex(tag.decode())) == 16 for tag in tags)


async def test_only_entries_have_a_ttl(world: World) -> None:
    """What guards the entries is never evicted by a volatile policy, and an entry never outlives its lookup's word."""
    await world.put("address", address(1, CRABTREE, "One"))
    await world.settled()
    await world.stored(BY_POSTCODE, CRABTREE)
    entries = set(await world.entries())
    assert len(entries) == 1
    async for key in world.redis.scan_iter(count=1000):
        ttl = await world.redis.pttl(key)
        assert (0 < ttl <= 4200_000) if key in entries else ttl == -1
        assert b"{town}" in key


async def test_a_tampered_entry_is_a_miss_and_counted(world: World) -> None:
    """One changed byte, anywhere, and the silo is asked; then the entry is replaced, whatever seq it claimed."""
    await world.put("claim", claim("C1", NINO, name="Before"))
    await world.settled()
    await world.stored(CLAIM_DETAILS, NINO)
    [(key, value)] = (await world.entries()).items()
    for place in (0, 1, 5, 9, 30, len(value) - 1):
        spoilt = bytearray(value)
        spoilt[place] ^= 0xFF
        await world.redis.set(key, bytes(spoilt), keepttl=True)
        answer = await world.ask(CLAIM_DETAILS, NINO)
        assert (answer.source, rows(answer)) == ("miss", [{"name": "Before"}])
        assert (await world.stored(CLAIM_DETAILS, NINO)).source == "hit"
    broken = sum(
        world.counted("silogate_cache_broken_entries_total", lookup=CLAIM_DETAILS.name, reason=reason)
        for reason in ("parse", "seal")
    )
    assert broken >= 6


@pytest.mark.parametrize("definition", [CLAIM_DETAILS, replace(CLAIM_DETAILS, personal=False)], ids=["sealed", "plain"])
async def test_entries_swapped_between_two_keys_are_misses(world: World, definition: object) -> None:
    """An entry counts only under the key that it was made for: nobody's answer becomes another's."""
    assert isinstance(definition, type(CLAIM_DETAILS))
    await world.put("claim", claim("C1", NINO, name="Ada"), claim("C2", OTHER_NINO, name="Grace"))
    await world.settled()
    for nino in (NINO, OTHER_NINO):
        await world.stored(definition, nino)
    first, second = (await world.entries()).items()
    await world.redis.set(first[0], second[1])
    await world.redis.set(second[0], first[1])
    assert rows(await world.ask(definition, NINO)) == [{"name": "Ada"}]
    assert rows(await world.ask(definition, OTHER_NINO)) == [{"name": "Grace"}]
    assert world.counted("silogate_cache_broken_entries_total", lookup=definition.name, reason="seal") == 2


async def test_a_process_with_another_definition_reads_the_silo_and_stores_nothing(world: World) -> None:
    """Where tags are made differently, Redis is left alone: neither its entries nor its word are taken."""
    await world.put("address", address(1, CRABTREE, "One"))
    await world.settled()
    await world.stored(BY_POSTCODE, CRABTREE)
    before = await world.entries()
    other = World(world.database, world.redis_url)
    other.tagger.definition = other.store.definition = "another"
    other.run(other.store.run())
    other.run(other.silo.run())
    try:
        for _ in range(5):
            answer = await other.ask(BY_POSTCODE, CRABTREE)
            assert (answer.source, answer.verdict, len(rows(answer))) == ("bypass", "found", 1)
        assert other.counted("silogate_cache_fills_total", silo="town", outcome="definition") > 0
        assert other.counted("silogate_cache_fills_total", silo="town", outcome="stored") == 0
    finally:
        await other.stop()
    assert await world.entries() == before


async def test_past_its_soft_ttl_an_entry_is_served_and_renewed_once(world: World) -> None:
    """Callers get the entry at once, and behind them one load makes a new one."""
    definition = replace(BY_POSTCODE, soft_ttl_s=0.2)
    await world.put("address", address(1, CRABTREE, "One"))
    await world.settled()
    await world.stored(definition, CRABTREE)
    [old] = (await world.entries()).values()
    await asyncio.sleep(0.3)
    loads = world.counted("silogate_silo_loads_total", silo="town", outcome="answered")
    answers = await asyncio.gather(*(world.ask(definition, CRABTREE) for _ in range(50)))
    assert {answer.source for answer in answers} == {"hit"}

    async def renewed() -> bool:
        return list((await world.entries()).values()) != [old]

    await until(renewed)
    assert world.counted("silogate_silo_loads_total", silo="town", outcome="answered") == loads + 1


async def test_while_the_silo_is_down_an_entry_past_its_ttl_is_served_marked_stale(
    database: Database, redis_url: str
) -> None:
    """Up to stale_for the last answer stands in, and is shown as such; without one there is no answer."""
    gate = Gate(database.url)
    await gate.open()
    world = World(database, redis_url, silo_url=gate.url)
    await world.prepare()
    world.start()
    definition = replace(BY_POSTCODE, ttl_s=0.3, soft_ttl_s=0.3, stale_for_s=600)
    hasty = replace(definition, name="kept-for-a-moment", stale_for_s=0.5)
    try:
        await world.put("address", address(1, CRABTREE, "One"))
        await world.settled()
        await world.stored(definition, CRABTREE)
        await world.stored(hasty, CRABTREE)
        await gate.shut()
        await asyncio.sleep(0.4)
        stale = await world.ask(definition, CRABTREE)
        assert (stale.source, stale.verdict, len(rows(stale))) == ("stale", "found", 1)
        with pytest.raises(SiloUnavailable):
            await world.ask(definition, ELM)
        await asyncio.sleep(0.6)
        with pytest.raises(SiloUnavailable):
            await world.ask(hasty, CRABTREE)
        await gate.open()

        async def loads_again() -> bool:
            try:
                return (await world.ask(definition, ELM)).verdict == "not_found"
            except SiloUnavailable:
                return False

        await until(loads_again)
    finally:
        await world.stop()
        await gate.shut()


async def test_a_hung_silo_costs_no_more_than_the_deadline(database: Database, redis_url: str) -> None:
    """One deadline covers the whole question; with a stale entry at hand the caller does not even wait for that."""
    gate = Gate(database.url)
    await gate.open()
    world = World(database, redis_url, silo_url=gate.url)
    await world.prepare()
    world.start()
    definition = replace(BY_POSTCODE, ttl_s=0.2, soft_ttl_s=0.2)
    loop = asyncio.get_running_loop()
    try:
        await world.put("address", address(1, CRABTREE, "One"))
        await world.settled()
        await world.stored(definition, CRABTREE)
        gate.hold()
        await asyncio.sleep(0.3)
        started = loop.time()
        with pytest.raises(SiloUnavailable):
            await world.ask(definition, ELM, timeout_s=0.4)
        assert loop.time() - started < 1.0
        started = loop.time()
        assert (await world.ask(definition, CRABTREE, timeout_s=10)).source == "stale"
        assert loop.time() - started < 2.0
    finally:
        await gate.open()
        await world.stop()
        await gate.shut()


async def test_a_replica_that_is_behind_cannot_fill_and_says_how_old_it_is(
    database: Database, redis_url: str, stack: Stack
) -> None:
    """Its answer goes out with its own as-of, is not stored, and the primary answers whoever asks for newer."""
    world = World(database, redis_url, replica_urls=[database.replica_url])
    await world.prepare()
    await world.put("address", address(1, CRABTREE, "Before"))
    await _replayed(database)
    world.start()
    try:
        await world.settled()
        await stack.control("replica", "pause")
        try:
            token = await world.put("address", address(1, CRABTREE, "After"))
            state = await world.settled()
            assert state.seq == token.seq
            behind = await world.ask(BY_POSTCODE, CRABTREE)
            assert rows(behind)[0]["address"] == "Before"
            assert behind.as_of.seq < token.seq
            assert behind.staleness_bound_ms is None

            async def refused() -> bool:
                await world.ask(BY_POSTCODE, CRABTREE)
                return world.counted("silogate_cache_fills_total", silo="town", outcome="tag") > 0

            await until(refused)
            assert await world.entries() == {}

            parsed = AsOf.parse(token.token)
            for wanted in (parsed, replace(parsed, epoch="another-life")):
                newest = await world.ask(BY_POSTCODE, CRABTREE, min_as_of=wanted)
                assert (newest.source, rows(newest)[0]["address"]) == ("bypass", "After")
                assert newest.as_of.seq >= token.seq
        finally:
            await stack.control("replica", "resume")
        await _replayed(database)
        hit = await world.stored(BY_POSTCODE, CRABTREE)
        assert rows(hit)[0]["address"] == "After"
        assert (await world.ask(BY_POSTCODE, CRABTREE, min_as_of=token)).source == "hit"
        elsewhere = AsOf("another", "epoch", 10)
        assert (await world.ask(BY_POSTCODE, CRABTREE, min_as_of=elsewhere)).source == "hit"
    finally:
        await world.stop()


async def test_of_two_replicas_the_one_that_is_not_behind_answers(
    database: Database, redis_url: str, stack: Stack
) -> None:
    """An answer older than Redis knows of is not given while another replica has a newer one."""
    world = World(database, redis_url, replica_urls=[database.replica_url, database.url])
    await world.prepare()
    await _replayed(database)
    world.start()
    try:
        await stack.control("replica", "pause")
        try:
            token = await world.put("address", address(1, CRABTREE, "After"))
            await world.settled()
            for _ in range(10):
                answer = await world.ask(replace(BY_POSTCODE, name="not-kept", ttl_s=0), CRABTREE)
                assert (answer.as_of.seq, rows(answer)[0]["address"]) == (token.seq, "After")
        finally:
            await stack.control("replica", "resume")
    finally:
        await world.stop()


async def _replayed(database: Database) -> None:
    """Wait until the replica has all that the primary has written by now."""
    primary, replica = await asyncpg.connect(database.url), await asyncpg.connect(database.replica_url)
    try:
        wanted = await primary.fetchval("select pg_current_wal_lsn()::text")

        async def there() -> bool:
            return bool(await replica.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", wanted))

        await until(there)
    finally:
        await primary.close()
        await replica.close()
