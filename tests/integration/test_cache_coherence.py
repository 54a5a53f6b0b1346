"""The change log reaches Redis without a gap, and a life whose positions cannot be compared ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache.coherence import Invalidator
from cache.entry import Entry
from cache.state import Position
from cache.store import Fill, Store
from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, STATE_KEY, World, address, as_bytes, rows, until

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url)
    await made.prepare()
    made.start()
    yield made
    await made.stop()


@pytest.fixture
async def quiet(database: Database, redis_url: str) -> AsyncIterator[World]:
    """The same, where nothing follows the primary but what a test does."""
    made = World(database, redis_url)
    await made.prepare()
    made.run(made.store.run())
    made.run(made.silo.run())
    yield made
    await made.stop()


async def test_an_empty_redis_begins_a_new_epoch(world: World) -> None:
    """After FLUSHALL nothing that was known before counts, and the old epoch is never used again."""
    await world.put("address", address(1, CRABTREE, "One"))
    before = await world.settled()
    await world.stored(BY_POSTCODE, CRABTREE)
    [key] = await world.entries()
    await world.redis.flushdb()
    after = await world.settled()
    assert after.epoch != before.epoch
    assert (after.seq, after.position.id) == (before.seq, before.position.id)
    assert await world.tip() == (after.epoch, after.seq)
    again = await world.stored(BY_POSTCODE, CRABTREE)
    assert again.as_of.epoch == after.epoch
    assert key not in await world.entries()


async def test_a_fill_from_before_an_epoch_is_refused(quiet: World) -> None:
    """A snapshot of the old life that arrives late stores nothing."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
        old = await quiet.settled()
        await quiet.redis.flushdb()
        await invalidator.step()
        await _offer(quiet, old.position)
        assert await quiet.entries() == {}
        assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="epoch") == 1


async def test_a_snapshot_older_than_the_epoch_is_refused_by_its_floor(quiet: World) -> None:
    """Tags from before an epoch are not known, so what a lagging replica read before them may not be kept."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
        first = await quiet.settled()
        # The applier begins an epoch and goes on; Redis follows only after the change, whose tags it will never see.
        epoch = secrets.token_hex(16)
        async with quiet.connect() as connection:
            await connection.execute("update progress set epoch = $1", epoch)
        await quiet.put("address", address(1, CRABTREE, "One"))
        await invalidator.step()
        state = await quiet.settled()
        assert (state.epoch, state.seq) == (epoch, first.seq + 1)
        await _offer(quiet, Position(epoch, first.seq, first.position.id, first.position.definition))
        assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="floor") == 1
        await _offer(quiet, state.position)
        assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="stored") == 1


async def test_a_fill_is_refused_once_its_row_has_changed(quiet: World) -> None:
    """An answer read before a change that touches it is not kept after Redis has heard of that change."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
        before = await quiet.settled()
        await quiet.put("address", address(1, CRABTREE, "One"))
        await invalidator.step()
        tag = quiet.tagger.value_tag("address", "postcode", [CRABTREE])
        await _offer(quiet, before.position, tags=(tag,))
        assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="tag") == 1
        await _offer(quiet, before.position, tags=(quiet.tagger.value_tag("address", "postcode", [ELM]),))
        assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="stored") == 1


async def test_an_older_answer_does_not_replace_a_newer_one(quiet: World) -> None:
    """Of two fills of one key the newer stays, in whichever order they come; a spoilt entry always gives way."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
    at = (await quiet.settled()).position
    newer = Position(at.epoch, at.seq + 5, "later", at.definition)
    await _offer(quiet, newer)
    await _offer(quiet, at)
    assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="kept") == 1
    await _offer(quiet, at, replace=True)
    assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="stored") == 2


async def test_two_invalidators_at_once_leave_no_gap(world: World) -> None:
    """Any number may follow one silo: each change is brought over once, in its order, and answers stay right."""
    first = await world.settled()
    for _ in range(2):
        store = world.make_store()
        world.run(Invalidator("town", world.database.url, store, world.metrics, poll_s=0.001).run())
    for n in range(40):
        await world.put("address", address(1, (CRABTREE, ELM)[n % 2], f"Move {n}"))
        await world.settled()
        here, gone = (CRABTREE, ELM) if n % 2 == 0 else (ELM, CRABTREE)
        assert [row["address"] for row in rows(await world.ask(BY_POSTCODE, here))] == [f"Move {n}"]
        assert rows(await world.ask(BY_POSTCODE, gone)) == []
    brought = range(first.seq + 1, first.seq + 41)
    assert await _feed(world) == [(str(seq - 1), str(seq)) for seq in brought]


async def test_the_feed_says_what_came_before_each_change(world: World) -> None:
    """Every entry of the feed carries the previous seq, so that a reader sees a gap."""
    await world.settled()
    for n in range(3):
        await world.put("address", address(n, CRABTREE, "One"))
    await world.settled()
    found = [(previous, seq) for previous, seq in await _feed(world) if previous]
    assert found == [("1", "2"), ("2", "3"), ("3", "4")]


async def test_lost_commits_of_the_primary_begin_a_new_epoch(world: World) -> None:
    """A primary that went back and on again shares numbers with what Redis knows, but not the life."""
    await world.put("address", address(1, CRABTREE, "Lost"))
    before = await world.settled()
    await world.stored(BY_POSTCODE, CRABTREE)
    async with world.connect() as connection, connection.transaction():
        await connection.execute("update address set address = 'Kept'")
        await connection.execute("update change_log set id = 'another' where seq = $1", before.seq)
        await connection.execute("update progress set id = 'another'")

    async def new_life() -> bool:
        state = await world.state()
        return state is not None and state.epoch != before.epoch

    await until(new_life)
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "Kept"
    await world.counts(1, "silogate_invalidator_epochs_total", silo="town", reason="other_life")


async def test_a_log_that_no_longer_reaches_back_begins_a_new_epoch(quiet: World) -> None:
    """What was trimmed from the change log cannot be brought over, so nothing from before it counts."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
        before = await quiet.settled()
        for n in range(3):
            await quiet.put("address", address(n, CRABTREE, "One"))
        async with quiet.connect() as connection:
            await connection.execute("delete from change_log where seq = $1", before.seq + 1)
        await invalidator.step()
        after = await quiet.settled()
        assert after.epoch != before.epoch
        assert quiet.counted("silogate_invalidator_epochs_total", silo="town", reason="log_trimmed") == 1


async def test_another_primary_begins_a_new_epoch(world: World) -> None:
    """After a failover the server that answers has another identity, and positions are not compared across it."""
    before = await world.settled()
    line = as_bytes(await world.redis.get(STATE_KEY)) or b""
    await world.redis.set(STATE_KEY, line.replace(before.server.encode(), b"7000000000000000000/00000009"))

    async def new_life() -> bool:
        state = await world.state()
        return state is not None and state.epoch != before.epoch and state.server == before.server

    await until(new_life)
    await world.counts(1, "silogate_invalidator_epochs_total", silo="town", reason="server")


async def test_a_silo_set_back_to_an_earlier_epoch_does_not_get_it_again(world: World) -> None:
    """Entries of that epoch may still live, and what guarded them is gone: a third epoch begins."""
    first = await world.settled()
    await world.put("address", address(1, CRABTREE, "Old"))
    await world.settled()
    await world.stored(BY_POSTCODE, CRABTREE)
    await world.redis.delete(STATE_KEY)
    second = await world.settled()
    async with world.connect() as connection:
        await connection.execute("update address set address = 'New'")
        await connection.execute("update progress set epoch = $1", first.epoch)

    async def third() -> bool:
        state = await world.state()
        return state is not None and state.epoch not in {first.epoch, second.epoch}

    await until(third)
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "New"


@pytest.mark.parametrize("garbage", [b"", b"nonsense", b"a b c d e f", b"\xff\xfe"])
async def test_a_state_that_cannot_be_read_is_replaced(world: World, garbage: bytes) -> None:
    """Whatever stands where the state should, a new epoch takes its place and answers go on."""
    await world.put("address", address(1, CRABTREE, "One"))
    before = await world.settled()
    await world.redis.set(STATE_KEY, garbage)
    assert (await world.ask(BY_POSTCODE, CRABTREE)).verdict == "found"
    assert (await world.settled()).epoch != before.epoch


async def test_tags_lost_alone_are_noticed(world: World) -> None:
    """Under a policy that evicts what has no TTL, entries whose tags went are not served, and a new epoch begins."""
    await world.put("address", address(1, CRABTREE, "One"))
    before = await world.settled()
    await world.stored(BY_POSTCODE, CRABTREE)
    await world.redis.delete(f"silogate:{{{world.silo.name}}}:tags")
    assert (await world.ask(BY_POSTCODE, CRABTREE)).source == "miss"
    await world.put("address", address(1, CRABTREE, "Two"))

    async def new_life() -> bool:
        state = await world.state()
        return state is not None and state.epoch != before.epoch

    await until(new_life)
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "Two"


async def test_old_tags_are_trimmed_and_the_floor_guards_in_their_place(quiet: World) -> None:
    """After the retention a tag goes, the floor stands above it, and a snapshot from before it is still refused."""
    store = quiet.make_store(retention_s=0.4)
    async with quiet.follower(store=store) as invalidator:
        await invalidator.step()
        before = await quiet.settled()
        tag = quiet.tagger.value_tag("address", "uprn", [1])
        await quiet.put("address", address(1, CRABTREE, "One"))
        await invalidator.step()
        assert tag.encode() in await quiet.tags()
        for n in range(2, 6):
            await asyncio.sleep(0.15)
            await quiet.put("address", address(n, CRABTREE, "Other"))
            await invalidator.step()
        tags = await quiet.tags()
        assert tag.encode() not in tags
        assert f"={before.epoch}".encode() in tags
        await _offer(quiet, before.position, tags=(tag,))
        assert quiet.counted("silogate_cache_fills_total", silo="town", outcome="floor") == 1


async def test_an_entry_lives_at_most_half_as_long_as_tags_are_kept(quiet: World) -> None:
    """No entry outlives what guards it, whatever its lookup asks for."""
    store = quiet.make_store(retention_s=20)
    quiet.run(store.run())
    async with quiet.follower(store=store) as invalidator:
        await invalidator.step()
    state = await quiet.settled()
    await _offer(quiet, state.position, store=store)
    [key] = await quiet.entries()
    assert 0 < await quiet.redis.pttl(key) <= 10_000


async def test_the_state_s_time_stands_still_while_redis_is_behind(quiet: World) -> None:
    """A beat is given only where Redis has all the primary has; the bound grows while it has not."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
        assert await invalidator.step() is False
        state = await quiet.settled()
        await quiet.put("address", address(1, CRABTREE, "One"))
        await asyncio.sleep(0.2)
        answer = await quiet.ask(BY_POSTCODE, ELM)
        found = await quiet.state()
        assert found is not None
        assert found.time_ms == state.time_ms
        assert answer.staleness_bound_ms is not None
        stored = await quiet.stored(BY_POSTCODE, ELM)
        assert stored.staleness_bound_ms is not None
        assert stored.staleness_bound_ms >= 200


async def test_no_beat_is_given_half_way_through_a_backlog(quiet: World) -> None:
    """Many changes are brought over in several looks, and only the last one finds Redis at the primary's tip."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
        before = await quiet.settled()
        for n in range(45):
            await quiet.put("address", address(n, CRABTREE, "One"))
        assert await invalidator.step() is True
        half_way = await quiet.state()
        assert half_way is not None
        assert before.seq < half_way.seq < before.seq + 45
        assert half_way.time_ms == before.time_ms
        assert await invalidator.step() is False
        assert (await quiet.settled()).time_ms > before.time_ms


async def test_beats_are_refused_once_the_state_has_moved(quiet: World) -> None:
    """Only the position that was the newest at a time gets that time."""
    async with quiet.follower() as invalidator:
        await invalidator.step()
    state = await quiet.settled()
    moved = Position(state.epoch, state.seq + 1, "other", state.position.definition)
    assert await quiet.store.beat(moved, state.time_ms + 1000) == "moved"
    assert await quiet.store.beat(state.position, state.time_ms + 1000) == "beaten"
    assert await quiet.store.beat(state.position, state.time_ms) == "beaten"
    found = await quiet.state()
    assert found is not None
    assert found.time_ms == state.time_ms + 1000


async def test_a_role_without_superuser_rights_can_follow(world: World) -> None:
    """Reading the primary's identity needs no right that a silo's owner would have to be given."""
    await world.settled()
    async with world.connect() as connection:
        name = f"owner_{secrets.token_hex(4)}"
        await connection.execute(f"create role {name} login password 'harmless'")
        await connection.execute(f"grant usage on schema silo_town to {name}")
        await connection.execute(f"grant select on silo_town.change_log to {name}")
        await connection.execute(f"grant select, update on silo_town.progress to {name}")
    host = world.database.url.rpartition("@")[2]
    try:
        async with world.follower(url=f"postgresql://{name}:harmless@{host}") as invalidator:
            await world.redis.delete(STATE_KEY)
            await invalidator.step()
            assert await world.settled()
    finally:
        async with world.connect() as connection:
            await connection.execute(f"drop owned by {name}")
            await connection.execute(f"drop role {name}")


async def _offer(
    world: World,
    position: Position,
    *,
    tags: tuple[str, ...] = (),
    replace: bool = False,
    store: Store | None = None,
) -> None:
    """A fill as a group would make it, and wait until Redis has decided about it."""
    store = store or world.store
    key = store.entry_key(position.epoch, "ab" * 16)
    body = Entry(position.seq, 0, 2**50, 2**50, 0, negative=False, body=b"[1]")
    value = world.group(BY_POSTCODE)._codec.pack(body, key)
    before = _decided(world)
    store.offer(Fill(position, key, value, tags, 3_600_000, replace))

    async def decided() -> bool:
        return _decided(world) > before

    await until(decided)


def _decided(world: World) -> float:
    samples = (sample for family in world.metrics.fills.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


async def _feed(world: World) -> list[tuple[str, str]]:
    found: Any = await world.redis.xrange(f"silogate:{{{world.silo.name}}}:feed")
    return [(fields[b"previous"].decode(), fields[b"seq"].decode()) for _, fields in found if fields[b"previous"]]
