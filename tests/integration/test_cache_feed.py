"""A process's own answers on a real Valkey: gone with the change that touches them, and with whatever ends the feed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from cache.entry import Codec, Entry
from cache.feed import L1, Held
from cache.state import Position, State
from cache.store import Fill
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.integration.cache_world import SILO, World, address, until
from tests.integration.tcp_gate import Gate

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"
_READ_SQL = """
select p.*, coalesce((select max(address) from address where postcode = $1), '-') as text from progress p
"""


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "Before"), address(2, ELM, "Elm House"))
    made.start()
    await made.settled()
    yield made
    await made.stop()


class Process:
    """One process's way to an answer: its own cache, Redis, and the silo, which fills Redis."""

    def __init__(self, world: World, kind: type[L1] = L1, *, url: str | None = None, silence_s: float = 2.0) -> None:
        self.world = world
        self.codec = Codec("texts", world.ring, personal=False)
        self.l1 = kind(
            SILO, url or world.redis_url, world.metrics, most_entries=100, most_bytes=10**6, silence_s=silence_s
        )

    def tags(self, postcode: str) -> tuple[str, ...]:
        return (self.world.tagger.value_tag("address", "postcode", [postcode]),)

    async def through_redis(self, postcode: str, *, delay_s: float = 0.0) -> bool:
        """Read Redis, let the reply be on its way for a while, and keep what counts; fill Redis when nothing does."""
        store, tags = self.world.store, self.tags(postcode)
        reading = await store.read(postcode.replace(" ", ""), tags)
        if reading is None or reading.state is None:
            return False
        if reading.raw is None or self.codec.unpack(reading.raw, reading.key).seq < reading.newest:
            await self._fill(postcode)
            return False
        await asyncio.sleep(delay_s)
        self.l1.keep(postcode, tags, self.codec.unpack(reading.raw, reading.key), reading.state)
        return True

    async def _fill(self, postcode: str) -> None:
        async with self.world.connect() as connection:
            row = await connection.fetchrow(_READ_SQL, postcode)
        at, now_ms = Position.of(row), self.world.store.now_ms()
        assert now_ms is not None
        ends = int(now_ms) + 600_000
        entry = Entry(at.seq, 0, ends, ends, 0, negative=False, body=row["text"].encode())
        key = self.world.store.entry_key(at.epoch, postcode.replace(" ", ""))
        self.world.store.offer(Fill(at, key, self.codec.pack(entry, key), self.tags(postcode), 600_000, replace=False))

    async def holds(self, postcode: str, text: str) -> Held:
        """Ask until this process itself has that text."""
        found: list[Held] = []

        async def held() -> bool:
            got = self.l1.get(postcode)
            if got is None:
                await self.through_redis(postcode)
            found[:] = [got] if got is not None and got.entry.body == text.encode() else []
            return bool(found)

        await until(held)
        return found[0]

    async def lets_go(self, postcode: str) -> None:
        async def gone() -> bool:
            return self.l1.get(postcode) is None

        await until(gone)

    def dropped(self, reason: str) -> float:
        return self.world.counted("silogate_l1_dropped_total", silo=SILO, reason=reason)


@asynccontextmanager
async def process(world: World, kind: type[L1] = L1, **options: Any) -> AsyncIterator[Process]:
    made = Process(world, kind, **options)
    world.run(made.l1.run())
    yield made


async def test_a_changed_row_is_gone_from_the_process(world: World) -> None:
    """The next answer is the new one, also of a process that was never asked to reread."""
    async with process(world) as one:
        assert (await one.holds(CRABTREE, "Before")).state.seq >= 1
        await one.holds(ELM, "Elm House")
        at = await world.put("address", address(1, CRABTREE, "After"))
        async with asyncio.timeout(5):
            await one.lets_go(CRABTREE)
        held = await one.holds(ELM, "Elm House")
        await until(lambda: _reached(one, ELM, at.seq))
        assert held.state.epoch == at.epoch
        assert (await one.holds(CRABTREE, "After")).state.seq >= at.seq
        assert one.dropped("tag") == 1


async def _reached(one: Process, postcode: str, seq: int) -> bool:
    held = one.l1.get(postcode)
    return held is not None and held.state.seq >= seq


async def test_the_time_of_an_answer_moves_on_while_nothing_changes(world: World) -> None:
    """The beat brings the as-of of a quiet silo forward, so the bound that is served stays small."""
    async with process(world) as one:
        first = (await one.holds(CRABTREE, "Before")).state.time_ms

        async def later() -> bool:
            held = one.l1.get(CRABTREE)
            return held is not None and held.state.time_ms > first

        await until(later)


async def test_a_flushed_redis_empties_it(world: World) -> None:
    """What was kept belongs to an epoch that is over."""
    async with process(world) as one:
        before = await one.holds(CRABTREE, "Before")
        await world.redis.flushdb()
        await one.lets_go(CRABTREE)
        after = await one.holds(CRABTREE, "Before")
        assert after.state.epoch != before.state.epoch
        assert one.dropped("epoch") >= 1


async def test_a_cut_connection_empties_it(world: World) -> None:
    """The next one may lead to another server; it is followed anew."""
    async with process(world) as one:
        await one.holds(CRABTREE, "Before")
        clients = await world.redis.client_list()
        mine = [client["id"] for client in clients if client["name"] == f"silogate-l1-{SILO}" and _is(client, world)]
        assert len(mine) == 1
        await world.redis.client_kill_filter(_id=mine[0])
        await one.lets_go(CRABTREE)
        await one.holds(CRABTREE, "Before")
        assert one.dropped("gap") == 1


def _is(client: dict[str, str], world: World) -> bool:
    return client["db"] == world.redis_url.rpartition("/")[2]


async def test_a_trimmed_feed_empties_it(world: World) -> None:
    """Rows that XREAD skips without a word are missed all the same."""
    gate = Gate(world.redis_url)
    await gate.open()
    async with process(world, url=gate.url, silence_s=60.0) as one:
        await one.holds(CRABTREE, "Before")
        gate.hold()
        await world.put("address", address(2, ELM, "Elm Cottage"))
        await world.settled()
        await world.put("address", address(1, CRABTREE, "After"))
        await world.put("address", address(2, ELM, "Elm Lodge"))
        await world.settled()
        await world.redis.xtrim(f"silogate:{{{SILO}}}:feed", maxlen=1, approximate=False)
        held = one.l1.get(CRABTREE)
        assert held is not None  # nothing of it has come here yet, and the as-of says so
        assert held.state.seq < (await world.tip())[1] - 1
        await gate.open()
        await one.lets_go(CRABTREE)
        await one.holds(CRABTREE, "After")
        assert one.dropped("gap") >= 1
    await gate.shut()


async def test_a_frozen_redis_is_silence(world: World, stack: Stack) -> None:
    """Within its bound the process answers on its own, and then no more."""
    async with process(world, silence_s=0.5) as one:
        await one.holds(CRABTREE, "Before")
        await stack.control("valkey", "freeze")
        try:
            async with asyncio.timeout(5):
                await one.lets_go(CRABTREE)
        finally:
            await stack.control("valkey", "thaw")
        await one.holds(CRABTREE, "Before")
        assert one.dropped("silence") >= 1


async def test_a_redis_that_is_away_is_no_error(world: World) -> None:
    """It begins empty, waits, and follows as soon as there is something to follow."""
    gate = Gate(world.redis_url)
    await gate.open()
    await gate.shut()
    async with process(world, url=gate.url) as one:
        assert await one.through_redis(CRABTREE) in {True, False}
        assert one.l1.get(CRABTREE) is None
        await gate.open()
        await one.holds(CRABTREE, "Before")
        await gate.shut()
        await one.lets_go(CRABTREE)
        await gate.open()
        await one.holds(CRABTREE, "Before")
    await gate.shut()


class KeepsAnyPosition(L1):
    """Knows of no reply in flight."""

    def keep(self, digest: str, tags: tuple[str, ...], entry: Entry, state: State) -> None:
        if self._state is not None and state.epoch == self._state.epoch:
            super().keep(digest, tags, entry, replace(state, position=self._state.position))


async def _missed(world: World, kind: type[L1], *, changes: int) -> list[str]:
    """What a process served that lacked a change which its as-of promised, over that many changes of one row."""
    log: list[int] = []
    missed: list[str] = []
    async with process(world, kind) as one:
        rng = random.Random(4)

        async def ask() -> None:
            while True:
                held = one.l1.get(CRABTREE)
                if held is None:
                    await one.through_redis(CRABTREE, delay_s=rng.random() * 0.02)
                    continue
                known = [seq for seq in log if seq <= held.state.seq]
                text = held.entry.body.decode()
                if known and (text == "Before" or int(text.rpartition(" ")[2]) < known[-1]):
                    missed.append(f"{text} as of {held.state.seq}, and {known[-1]} is missing")
                await asyncio.sleep(0.001)

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        async with asyncio.timeout(40), world.connect() as connection:
            # On a busy machine many a change comes before the one before it has been read.
            while len(log) < changes or one.dropped("tag") <= changes / 4:
                seq = (await world.tip())[1] + 1
                await world.apply_on(connection, "address", {1: address(1, CRABTREE, f"Changed at {seq}")})
                log.append(seq)
                await asyncio.sleep(rng.random() * 0.03)
        for task in asking:
            task.cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(one) for one in ended} == {asyncio.CancelledError}
    return missed


async def test_no_change_is_missed_while_replies_are_in_flight(world: World) -> None:
    """Eight callers, replies that arrive late, a row that keeps changing: every answer has what its as-of promises."""
    assert await _missed(world, L1, changes=80) == []


async def test_without_the_rule_for_replies_in_flight_changes_are_missed(world: World) -> None:
    """The same traffic finds it out."""
    assert await _missed(world, KeepsAnyPosition, changes=80)
