"""Whatever Redis does, lookups go on: at worst without it, and never on its word alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.integration.cache_world import BY_POSTCODE, World, address, rows, until

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "Before"))
    made.start()
    await made.settled()
    yield made
    await made.stop()


async def _asked(world: World) -> None:
    """Ask, and expect the row as it is, in time."""
    assert len(rows(await world.ask(BY_POSTCODE, CRABTREE, timeout_s=2))) == 1


def _errors(world: World, kind: str) -> float:
    return world.counted("silogate_redis_errors_total", kind=kind)


async def test_a_killed_valkey_is_a_miss_and_then_begins_anew(world: World, stack: Stack) -> None:
    """Lookups go on while it is dead; back with nothing in it, it gets a new epoch and no old answer."""
    before = (await world.stored(BY_POSTCODE, CRABTREE)).as_of
    await stack.control("valkey", "kill")
    try:
        assert (await world.ask(BY_POSTCODE, CRABTREE)).source == "bypass"
        await world.put("address", address(1, CRABTREE, "After"))
        for _ in range(20):
            answer = await world.ask(BY_POSTCODE, CRABTREE)
            assert (answer.source, rows(answer)[0]["address"]) == ("bypass", "After")
        assert _errors(world, "connection") > 0
        assert world.counted("silogate_redis_skipped_total") > 10
    finally:
        await stack.control("valkey", "start")
    hit = await world.stored(BY_POSTCODE, CRABTREE)
    assert rows(hit)[0]["address"] == "After"
    assert hit.as_of.epoch != before.epoch


async def test_a_hung_valkey_costs_its_time_out_once_a_second(world: World, stack: Stack) -> None:
    """The first caller waits as long as Redis is given, the next ones not at all; then it is used again."""
    await world.stored(BY_POSTCODE, CRABTREE)
    loop = asyncio.get_running_loop()
    await stack.control("valkey", "freeze")
    started = loop.time()
    try:
        for _ in range(30):
            await _asked(world)
        assert 1 <= _errors(world, "timeout") <= 2 + loop.time() - started
        assert world.counted("silogate_redis_skipped_total") >= 20
    finally:
        await stack.control("valkey", "thaw")
    assert (await world.stored(BY_POSTCODE, CRABTREE)).source == "hit"


async def test_calls_that_redis_cut_off_leave_no_reply_behind(world: World, stack: Stack) -> None:
    """After time-outs and cancelled callers nobody gets the reply to another's question."""
    await world.put("address", *(address(n, f"BN{n} 1AA", f"House {n}") for n in range(10, 40)))
    await world.settled()
    for _ in range(3):
        await stack.control("valkey", "freeze")
        asking = [asyncio.create_task(world.ask(BY_POSTCODE, f"BN{n} 1AA")) for n in range(10, 40)]
        await asyncio.sleep(0.02)
        for task in asking[::3]:
            task.cancel()
        await stack.control("valkey", "thaw")
        await asyncio.gather(*asking, return_exceptions=True)
        answers = await asyncio.gather(*(world.ask(BY_POSTCODE, f"BN{n} 1AA") for n in range(10, 40)))
        assert [rows(answer)[0]["address"] for answer in answers] == [f"House {n}" for n in range(10, 40)]


@asynccontextmanager
async def _configured(world: World, **settings: str) -> AsyncIterator[None]:
    before = {name: str((await world.redis.config_get(name))[name]) for name in settings}
    for name, value in settings.items():
        await world.redis.config_set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            await world.redis.config_set(name, value)


async def test_a_full_redis_only_drops_fills(world: World) -> None:
    """What is in it is still read; what it does not take is counted, and asked of the silo again."""
    await world.stored(BY_POSTCODE, CRABTREE)
    async with _configured(world, **{"maxmemory-policy": "noeviction", "maxmemory": "1"}):

        async def refused() -> bool:
            await world.ask(BY_POSTCODE, ELM)
            return world.counted("silogate_cache_fills_total", silo="town", outcome="full") > 0

        await until(refused)
        assert (await world.ask(BY_POSTCODE, ELM)).source == "miss"

        async def read() -> bool:
            return (await world.ask(BY_POSTCODE, CRABTREE)).source == "hit"

        await until(read)
    assert (await world.stored(BY_POSTCODE, ELM)).verdict == "not_found"


async def test_a_read_only_redis_is_left_alone_and_used_again(world: World) -> None:
    """A server that was made a replica takes no fill; it is counted, skipped, and used once it is a primary again."""
    await world.redis.slaveof("127.0.0.1", 1)
    try:

        async def counted() -> bool:
            await world.ask(BY_POSTCODE, ELM)
            return _errors(world, "read_only") > 0

        await until(counted)
        assert (await world.ask(BY_POSTCODE, ELM)).source == "bypass"
    finally:
        await world.redis.slaveof()
    assert (await world.stored(BY_POSTCODE, ELM)).source == "hit"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "connection"),
        (b"not a reply at all\r\n", "connection"),
        (b"", "connection"),
    ],
    ids=["loading", "no primary", "nonsense", "cut off"],
)
async def test_a_server_that_answers_with_an_error_is_a_miss(database: Database, reply: bytes, kind: str) -> None:
    """Whatever comes instead of a reply is counted under its kind, and the silo answers."""

    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while reply and await reader.read(65536):
                writer.write(reply * 8)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(misbehave, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    world = World(database, f"redis://127.0.0.1:{port}/0")
    try:
        await world.prepare()
        await world.put("address", address(1, CRABTREE, "Before"))
        world.run(world.store.run())
        world.run(world.silo.run())
        answer = await world.ask(BY_POSTCODE, CRABTREE)
        assert (answer.source, answer.verdict) == ("bypass", "found")
        errors = {name: _errors(world, name) for name in ("loading", "response", "connection", "timeout")}
        assert errors == dict.fromkeys(errors, 0) | {kind: 1}
    finally:
        await world.stop()
        server.close()
        await server.wait_closed()


async def test_a_restart_of_postgres_is_followed_by_recovery(world: World, stack: Stack) -> None:
    """Entries are served while the primary is away, its changes are followed again when it is back."""
    await world.stored(BY_POSTCODE, CRABTREE)
    await stack.control("postgres", "restart")

    async def changed() -> bool:
        await world.put("address", address(1, CRABTREE, "After"))
        return True

    await until(_in_spite_of(OSError, changed))
    await world.settled()
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "After"
    unasked = replace(BY_POSTCODE, name="not-asked-before")
    assert len(rows(await world.ask(unasked, CRABTREE))) == 1


def _in_spite_of(kind: type[Exception], condition: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    async def tried() -> bool:
        try:
            return await condition()
        except kind:
            return False

    return tried
