"""Requests pipelined on one connection, and clients that read slowly, on the real stack: to each its own answer."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

import gateway.protocol
from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, address, until
from tests.integration.direct_world import PATH, Ways, both_ways, get

# More than aiohttp queues before it stops reading the connection, several times over.
_MANY = 60
_POSTCODES = [f"BN{10 + n // 10} {n % 10}AA" for n in range(_MANY)]
_SENTINEL = get("/v1/lookups", close=True)
_STALLED_S = 0.5


@pytest.fixture
async def ways(gateway_database: Database, redis_url: str, tmp_path: Path) -> AsyncIterator[Ways]:
    """Both ways, with one house to each postcode and the keys known; none of it is in the cache."""
    async with both_ways(gateway_database, redis_url, tmp_path) as ways:
        await ways.world.put("address", *(address(100 + n, one, f"House {n}") for n, one in enumerate(_POSTCODES)))
        await ways.world.settled()
        await ways.warm()
        yield ways


def _houses(said: bytes) -> list[str]:
    """The house in each body, in the order of the answers."""
    bodies = [part.partition(b"\r\n\r\n")[2] for part in said.split(b"HTTP/1.1 ")[1:]]
    return [one["address"] for body in bodies for one in json.loads(body).get("results", [])]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("times", [1, 3])
async def test_each_of_many_pipelined_questions_gets_its_own_answer(ways: Ways, warm: bool, times: int) -> None:
    """All different, in one write: as many answers, in their order, none of another question; either way."""
    if warm:
        for one in _POSTCODES:
            await ways.world.stored(BY_POSTCODE, one)
    asked = [get(PATH + one) for one in _POSTCODES] * times
    for port in (ways.short, ways.long):
        said = await ways.say(port, *asked, _SENTINEL)
        assert _houses(said) == [f"House {n}" for n in range(_MANY)] * times
        assert said.count(b"HTTP/1.1 200 OK") == _MANY * times + 1
    assert ways.taken.count("waits") >= _MANY * times
    assert ways.inside == 0


async def test_a_fault_of_one_connection_costs_only_that_one(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut off; who shares its reply from Redis is answered, and so is who asks next."""
    send = gateway.protocol._Connection._send

    def broken(connection: gateway.protocol._Connection, wire: bytes) -> None:
        if b"House 7" in wire:
            raise RuntimeError("a fault of the connection")
        send(connection, wire)

    monkeypatch.setattr(gateway.protocol._Connection, "_send", broken)
    asked = [(get(PATH + one), _SENTINEL) for one in _POSTCODES[:10]]
    said = await asyncio.gather(*(ways.say(ways.short, *both) for both in asked))
    assert [_houses(one) for one in said] == [[f"House {n}"] if n != 7 else [] for n in range(10)]
    assert said[7] == b""
    assert not any(task.done() for task in ways.world._tasks)
    assert _houses(await ways.say(ways.short, *asked[0])) == ["House 0"]
    assert ways.inside == 0


@pytest.mark.parametrize("reads", [True, False], ids=["slowly", "not at all"])
async def test_only_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """One that keeps reading, however slowly, gets all of an answer that takes it several times the limit."""
    monkeypatch.setattr(gateway.protocol, "_STALLED_S", _STALLED_S)
    size = 12 << 20

    async def large(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(size))

    app = web.Application()
    app.router.add_get("/large", large)
    runner = gateway.protocol.Runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def is_open() -> bool:
        return runner.server is not None and bool(runner.server.connections)

    loop = asyncio.get_running_loop()
    # a small buffer of the client's own, so that what it does not read waits at the server
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.setblocking(False)
    try:
        await loop.sock_connect(client, ("127.0.0.1", runner.addresses[0][1]))
        await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: silogate\r\nConnection: close\r\n\r\n")
        started, taken = loop.time(), 0
        if reads:
            async with asyncio.timeout(30):
                while chunk := await loop.sock_recv(client, 1 << 18):
                    taken += len(chunk)
                    # at this pace the whole takes four times the limit at least
                    await asyncio.sleep(max(0.0, started + 4 * _STALLED_S * taken / size - loop.time()))
            assert taken > size
        else:

            async def is_cut() -> bool:
                return not await is_open()

            await until(is_open)
            await until(is_cut)
            assert loop.time() - started >= _STALLED_S
    finally:
        client.close()
        await runner.cleanup()
