"""Redis holds, or answers, what it never should: a miss that is counted, and a process that goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import hiredis
import pytest

from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, STATE_KEY, World, address, rows, until

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"
TAGS_KEY = STATE_KEY.replace("state", "tags")


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url, skip_s=0.05)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "One"), address(2, ELM, "Two"))
    made.start()
    await made.settled()
    yield made
    ended = [task for task in made._tasks if task.done()]
    await made.stop()
    assert ended == [], "a part of the process has ended"


def _refusals(world: World) -> float:
    return world.counted("silogate_redis_errors_total", kind="response")


@pytest.mark.parametrize("key", [STATE_KEY, TAGS_KEY], ids=["state", "tags"])
async def test_a_key_of_another_type_is_a_miss_until_it_is_gone(world: World, key: str) -> None:
    """The silo answers, rightly, also after a change; without that key the silo gets an epoch and hits again."""
    before = (await world.stored(BY_POSTCODE, CRABTREE)).as_of
    await world.redis.delete(key)
    await world.redis.rpush(key, "not what belongs here")

    async def refused() -> bool:
        answer = await world.ask(BY_POSTCODE, CRABTREE)
        assert (answer.source, answer.verdict, rows(answer)[0]["address"]) == ("bypass", "found", "One")
        return _refusals(world) > 1

    await until(refused)
    await world.put("address", address(1, CRABTREE, "One, renamed"))
    answer = await world.ask(BY_POSTCODE, CRABTREE)
    assert (answer.source, rows(answer)[0]["address"]) == ("bypass", "One, renamed")
    await world.redis.delete(key)
    hit = await world.stored(BY_POSTCODE, CRABTREE)
    assert rows(hit)[0]["address"] == "One, renamed"
    assert hit.as_of.epoch != before.epoch


async def test_an_entry_of_another_type_is_a_miss_and_gives_way(world: World) -> None:
    """Nobody takes it for an answer; the next one takes its place."""
    await world.stored(BY_POSTCODE, CRABTREE)
    [key] = await world.entries()
    await world.redis.delete(key)
    await world.redis.rpush(key, "not an entry")
    answer = await world.ask(BY_POSTCODE, CRABTREE)
    assert (answer.source, rows(answer)[0]["address"]) == ("miss", "One")
    assert rows(await world.stored(BY_POSTCODE, CRABTREE))[0]["address"] == "One"
    assert _refusals(world) == 0


async def test_a_user_who_may_not_read_is_a_miss(world: World) -> None:
    """An ACL that lacks a command is a Redis that is no help, and no more than that."""
    await world.stored(BY_POSTCODE, CRABTREE)
    await world.redis.execute_command("ACL", "SETUSER", "default", "-zmscore")  # type: ignore[no-untyped-call]
    try:

        async def refused() -> bool:
            answer = await world.ask(BY_POSTCODE, CRABTREE)
            assert answer.verdict == "found"
            return answer.source == "bypass" and _refusals(world) > 0

        await until(refused)
    finally:
        await world.redis.execute_command("ACL", "SETUSER", "default", "+@all")  # type: ignore[no-untyped-call]
    assert (await world.stored(BY_POSTCODE, CRABTREE)).source == "hit"


# What a command may be answered with by something that is no Redis, or by one that is out of step.
_ODD = {
    "nil": b"$-1\r\n",
    "no list": b"*-1\r\n",
    "number": b":7\r\n",
    "word": b"$4\r\nword\r\n",
    "empty": b"*0\r\n",
    "nested": b"*1\r\n*1\r\n$1\r\nx\r\n",
}


@asynccontextmanager
async def _pretender(state: bytes, odd: Mapping[bytes, bytes]) -> AsyncIterator[str]:
    """A server with an empty cache that answers some commands oddly; yields its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                parser.feed(data)
                while command := parser.gets():
                    writer.write(odd.get(command[0].upper(), _usual(state, command)))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


def _usual(state: bytes, command: list[bytes]) -> bytes:
    def bulk(text: bytes) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(text), text)

    nils = len(command) - 1
    name = command[0].upper()
    if name == b"TIME":
        return b"*2\r\n" + bulk(b"1795384800") + bulk(b"0")
    if name == b"GET":
        return bulk(state)
    if name == b"MGET":
        return b"*%d\r\n" % nils + b"$-1\r\n" * nils
    if name == b"ZMSCORE":
        return b"*%d\r\n" % (nils - 1) + bulk(b"inf") + b"$-1\r\n" * (nils - 2)
    return bulk(b"stored") if name == b"EVALSHA" else b"+OK\r\n"


@pytest.mark.parametrize("command", ["TIME", "GET", "MGET", "ZMSCORE", "EVALSHA"])
async def test_an_odd_reply_is_a_miss(database: Database, command: str) -> None:
    """Whatever comes in the place of what the command has, the silo answers, and every part goes on."""
    state = f"e 0 id {World(database, 'redis://127.0.0.1:1/0').tagger.definition} server 1795384800000".encode()
    odd: dict[bytes, bytes] = {}
    async with _pretender(state, odd) as url:
        world = World(database, url, skip_s=0.02)
        await world.prepare()
        await world.put("address", address(1, CRABTREE, "One"))
        world.start()
        try:
            for name, reply in _ODD.items():
                odd[command.encode()] = reply
                for _ in range(4):
                    answer = await world.ask(BY_POSTCODE, CRABTREE, timeout_s=2)
                    assert (answer.verdict, answer.source in {"miss", "bypass"}) == ("found", True), name
                    await asyncio.sleep(0.03)
                assert [task for task in world._tasks if task.done()] == [], name
            assert _refusals(world) > 0
        finally:
            await world.stop()
