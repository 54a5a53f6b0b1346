"""The short way when something is away, slow, too much or over: each request is answered once, none stays behind."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import gateway.protocol
from gateway.context import EdgeOptions
from gateway.dev.addresses import Database
from gateway.direct import DIRECT
from gateway.limits import DEFAULT_RATES, RateClass
from tests.integration.cache_world import BY_POSTCODE, address, until
from tests.integration.direct_world import CRABTREE, PATH, Ways, both_ways, get, without_times

_HIT = get(PATH + CRABTREE)
_SENTINEL = get("/v1/lookups", close=True)


def without_misses(said: bytes) -> bytes:
    """Without times, and without what tells whether the cache had it: the second who asks finds more there."""
    return re.sub(rb"Cache-Status: [^\r]*\r\n", b"", without_times(said))


@pytest.fixture
async def ways(gateway_database: Database, redis_url: str, tmp_path: Path) -> AsyncIterator[Ways]:
    """Both ways, warm, with a second for a lookup."""
    async with both_ways(gateway_database, redis_url, tmp_path, lookup_timeout=1.0) as ways:
        await ways.warm(CRABTREE)
        yield ways


async def _stop_reading(ways: Ways) -> None:
    """From now on nobody answers who asks Redis: questions wait in their batch."""
    reading = ways.world._tasks[0]
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def _is_in_hand(ways: Ways) -> bool:
    return ways.inside == 1


async def _is_over(ways: Ways) -> bool:
    return ways.inside == 0


async def test_a_batch_that_never_comes_back_ends_at_the_deadline(ways: Ways) -> None:
    """503 in time where the silo is no help either, and the next request on the connection is answered."""
    await _stop_reading(ways)
    silo = ways.world._tasks[1]
    silo.cancel()
    await asyncio.gather(silo, return_exceptions=True)
    started = asyncio.get_running_loop().time()
    said = await ways.say(ways.short, _HIT, get(PATH + "BN15", close=True))
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"silo_unavailable"' in said
    assert b"HTTP/1.1 400 " in said
    assert 0.5 < asyncio.get_running_loop().time() - started < 5
    assert "waits" in ways.taken
    assert ways.inside == 0


async def test_a_miss_that_the_silo_is_silent_to_ends_at_the_deadline(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 in time; nobody waits for the load any more, and the next one who asks gets what it brings."""
    loader, door = ways.world.silo.loader, asyncio.Event()
    fetch = loader._fetch

    async def silent(*arguments: Any, **options: Any) -> Any:
        await door.wait()
        return await fetch(*arguments, **options)

    monkeypatch.setattr(loader, "_fetch", silent)
    asked = get(PATH + "BN43 5TE")
    ways.taken.clear()
    said = await ways.say(ways.short, asked, get(PATH + "BN15", close=True))
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"HTTP/1.1 400 " in said
    assert ways.taken[0] == "waits"
    assert (ways.inside, loader._callers) == (0, 0)
    door.set()
    assert (await ways.say(ways.short, asked, _SENTINEL)).startswith(b"HTTP/1.1 200 ")


async def test_a_plain_question_needs_no_parser_though_it_is_new(ways: Ways) -> None:
    """Once the headers of a client are known: its first question in each spelling is answered as the long way does."""
    spellings = [get(PATH + text) for text in ("BN15%209JB", "bn159jb", "bn15+9jb", "BN43+5TE", "BN11%201AA")]
    short = await ways.say_in_turn(ways.short, _HIT, *spellings, _SENTINEL)
    token = ways.edge.tokens["form"].encode()
    assert [line.replace(b"KEY", token) in ways.known for line in (_HIT, *spellings)] == [False, *[True] * 5]
    long = await ways.say_in_turn(ways.long, _HIT, *spellings, _SENTINEL)
    assert without_misses(short) == without_misses(long)


async def test_a_client_that_goes_away_leaves_nothing(ways: Ways) -> None:
    """Its place is free again, whether the answer comes or not."""
    for stopped in (False, True):
        if stopped:
            await _stop_reading(ways)
        _, writer = await asyncio.open_connection("127.0.0.1", ways.short)
        writer.write(_HIT.replace(b"KEY", ways.edge.tokens["form"].encode()))
        await writer.drain()
        if stopped:
            await until(lambda: _is_in_hand(ways))
        writer.close()
        await until(lambda: _is_over(ways))


async def test_a_client_that_goes_away_as_redis_answers_leaves_nothing(ways: Ways) -> None:
    """Its last word and a reply that is a miss come in one turn of the loop, in each order: nobody is left behind."""
    await _stop_reading(ways)
    loop, direct, faults = asyncio.get_running_loop(), ways.app[DIRECT], list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, fault: faults.append(fault))
    try:
        for order in ("reply first", "reply last", "deadline last"):
            client = socket.create_connection(("127.0.0.1", ways.short))
            client.sendall(_HIT.replace(b"KEY", ways.edge.tokens["form"].encode()))
            await until(lambda: _is_in_hand(ways))
            in_hand = direct._waiting[-1]
            client.close()
            # what is ready runs before what the next look at the sockets finds, and timers after it
            if order == "reply first":
                loop.call_soon(in_hand.told, None)
            elif order == "reply last":
                loop.call_later(0, in_hand.told, None)
            else:
                in_hand.exchange.deadline = 0.0
                loop.call_later(0, direct._look_for_late)
            await until(lambda: _is_over(ways))
            del in_hand
            gc.collect()
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert faults == []
    assert (await ways.say(ways.short, get(PATH + "BN15", close=True))).startswith(b"HTTP/1.1 400 ")


async def test_what_is_in_hand_is_answered_before_the_process_stops(ways: Ways) -> None:
    """A request that waits for Redis while the server shuts down gets its answer, and then the connection ends."""
    await _stop_reading(ways)
    asking = asyncio.create_task(ways.say(ways.short, _HIT))
    await until(lambda: _is_in_hand(ways))
    stopping = asyncio.create_task(ways.runner.cleanup())
    await asyncio.sleep(0.05)
    ways.world.run(ways.world.store.run())
    assert (await asking).startswith(b"HTTP/1.1 200 ")
    await stopping
    assert ways.inside == 0


async def test_a_request_that_needs_the_silo_is_answered_while_the_process_stops(ways: Ways) -> None:
    """The same where Redis does not answer: the task behind the connection is still there to do it."""
    await _stop_reading(ways)
    asking = asyncio.create_task(ways.say(ways.short, _HIT))
    await until(lambda: _is_in_hand(ways))
    stopping = asyncio.create_task(ways.runner.cleanup())
    said = await asking
    assert said == b"" or said.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 200 "))
    await stopping
    assert ways.inside == 0


async def test_without_redis_the_silo_answers(ways: Ways) -> None:
    """While Redis is skipped, requests taken the short way are bypasses, one answer each."""
    ways.world.link._skip_until = float("inf")
    said = await ways.say(ways.short, *[_HIT] * 5, _SENTINEL)
    assert said.count(b"Cache-Status: Silogate; fwd=bypass") == 5


async def test_an_answer_follows_a_change(ways: Ways) -> None:
    """What is remembered of an address is the question, never the answer."""
    await ways.say(ways.short, _HIT, _HIT, _SENTINEL)
    await ways.world.put("address", address(99, CRABTREE, "99 Crabtree Lane"))
    await ways.world.settled()
    assert b"99 Crabtree Lane" in await ways.say(ways.short, _HIT, _SENTINEL)


async def test_a_key_gets_its_rate_and_no_more(gateway_database: Database, redis_url: str, tmp_path: Path) -> None:
    """One token a request whichever way it goes, and 429 with Retry-After when there is none."""
    options = EdgeOptions(rates=DEFAULT_RATES | {"lookup": RateClass(0.001, 6)})
    async with both_ways(gateway_database, redis_url, tmp_path, options=options) as ways:
        await ways.warm(CRABTREE)
        said = await ways.say(ways.short, *[_HIT] * 9, get(PATH + CRABTREE, close=True))
        answers = [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]]
        assert answers == [b"200"] * 5 + [b"429"] * 5 or answers == [b"200"] * 6 + [b"429"] * 4
        assert b"Retry-After: " in said


async def test_a_client_that_does_not_read_is_cut_off(
    gateway_database: Database, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a few answers in memory at most, and not for long; the others are not made."""
    monkeypatch.setattr(gateway.protocol, "_STALLED_S", 0.3)
    async with both_ways(gateway_database, redis_url, tmp_path) as ways:
        await ways.world.put("address", *(address(n, "BN43 5TE", "House " + "x" * 10_000) for n in range(100, 180)))
        await ways.world.stored(BY_POSTCODE, "BN43 5TE")
        await ways.warm(CRABTREE)
        reader, writer = await asyncio.open_connection("127.0.0.1", ways.short, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport that reads
        asked = get(PATH + "BN43 5TE").replace(b"KEY", ways.edge.tokens["form"].encode())
        writer.write(asked * 200)

        async def cut() -> bool:
            return not ways.runner.server.connections if ways.runner.server is not None else True

        await until(cut)
        assert ways.taken.count("waits") + ways.taken.count("at once") < 50
        assert ways.inside == 0
        writer.close()
        del reader


def test_the_short_way_is_open_with_this_aiohttp() -> None:
    """A release whose connections are built otherwise closes it: found here, and not by how slow it is."""
    assert gateway.protocol.HAS_SHORT_WAY
