"""The short way answers as the long way does, byte by byte, and leaves to it whatever it should."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from cache.group import Group
from gateway.dev.addresses import Database, Servers
from gateway.serving import IN_FLIGHT
from tests.integration.cache_world import until
from tests.integration.direct_world import CRABTREE, NOWHERE, PATH, Ways, both_ways, get, without_times
from tests.integration.edge import gateway_schema

_HIT = get(PATH + CRABTREE)
_SENTINEL = get("/v1/lookups", close=True)


@pytest.fixture(scope="module", params=[False, True], ids=["redis", "l1"])
async def both(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ways]:
    """Both ways over one silo for the whole module, with an answer of each verdict in the cache."""
    # the one that the databases of single tests leave out
    redis_url = f"{servers.redis_url.rsplit('/', 1)[0]}/0"
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()
    async with (
        gateway_schema(servers) as url,
        both_ways(Database(url, url), redis_url, tmp_path_factory.mktemp("edge"), l1=request.param) as ways,
    ):
        yield ways


@pytest.fixture
async def ways(both: Ways, request: pytest.FixtureRequest) -> Ways:
    """The same, warm, with nothing asked yet."""
    await both.warm(CRABTREE, NOWHERE)
    if "l1" in request.node.callspec.id:
        await _held(both, CRABTREE, NOWHERE)
    both.taken.clear()
    both.known.clear()
    return both


async def _held(ways: Ways, *postcodes: str) -> None:
    """Ask until this process has the answers itself."""
    for postcode in postcodes:

        async def at_once(asked: bytes = get(PATH + postcode)) -> bool:
            await ways.say(ways.short, asked, _SENTINEL)
            return "at once" in ways.taken

        ways.taken.clear()
        await until(at_once)


_ASKED: dict[str, tuple[bytes, bool]] = {
    "found": (_HIT, True),
    "not found": (get(PATH + NOWHERE), True),
    "percent for the space": (get(PATH + "BN15%209JB"), True),
    "another spelling": (get(PATH + "bn159jb"), True),
    "correlation id of its own": (get(PATH + CRABTREE, "Silogate-Correlation-Id: form-0001"), True),
    "correlation id that is none": (get(PATH + CRABTREE, "Silogate-Correlation-Id: a b"), True),
    "headers in small letters": (get(PATH + CRABTREE, "accept: */*", "silogate-correlation-id:   form-0002"), True),
    "any etag": (get(PATH + CRABTREE, "If-None-Match: *"), True),
    "another etag": (get(PATH + CRABTREE, 'If-None-Match: W/"0", "1"'), True),
    "two keys": (get(PATH + CRABTREE, "Authorization: Bearer nobody"), True),
    "keep alive": (get(PATH + CRABTREE, "Connection: keep-alive"), True),
    "lower-case scheme": (get(PATH + CRABTREE, key="bearer KEY"), True),
    "no key": (get(PATH + CRABTREE).replace(b"Authorization: Bearer KEY\r\n", b""), False),
    "forged key": (get(PATH + CRABTREE, key="Bearer sg_000000000000_" + "A" * 43), False),
    "another scheme": (get(PATH + CRABTREE, key="Basic dXNlcjpwYXNz"), False),
    "unknown lookup": (get("/v1/lookups/bin-days?postcode=BN15+9JB"), False),
    "no parameter": (get("/v1/lookups/addresses-by-postcode"), False),
    "empty parameter": (get(PATH), False),
    "malformed parameter": (get(PATH + "BN15"), False),
    "repeated parameter": (get(PATH + CRABTREE + "&postcode=BN15+9JB"), False),
    "unknown parameter": (get(PATH + CRABTREE + "&town=Lancing"), False),
    "fragment": (get(PATH + CRABTREE + "#top"), False),
    "encoded name": (get("/v1/lookups/addresses%2Dby-postcode?postcode=BN15+9JB"), False),
    "doubled slash": (get("//v1/lookups/addresses-by-postcode?postcode=BN15+9JB"), False),
    "whole address": (get("http://silogate" + PATH + CRABTREE), False),
    "personal": (get("/v1/lookups/claim-already-open?nino=QQ123456C"), False),
    "head": (get(PATH + CRABTREE, method="HEAD"), False),
    "options": (get(PATH + CRABTREE, method="OPTIONS"), False),
    "newest seen": (get(PATH + CRABTREE, "Silogate-Min-As-Of: town:other:1"), False),
    "malformed newest seen": (get(PATH + CRABTREE, "Silogate-Min-As-Of: nothing"), False),
    "body": (get(PATH + CRABTREE, "Content-Length: 2") + b"{}", False),
    "chunked body": (get(PATH + CRABTREE, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n", False),
    "expectation": (get(PATH + CRABTREE, "Expect: 100-continue"), False),
    "unknown expectation": (get(PATH + CRABTREE, "Expect: gold"), False),
    "old protocol": (_HIT.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
    "old protocol kept alive": (get(PATH + CRABTREE, "Connection: keep-alive").replace(b"P/1.1", b"P/1.0"), False),
    "closing": (get(PATH + CRABTREE, close=True), False),
    "broken": (_HIT.replace(b"Host: silogate", b"Host silogate"), False),
    "two lengths": (get(PATH + CRABTREE, "Content-Length: 0", "Content-Length: 5"), False),
}


@pytest.mark.parametrize("name", _ASKED)
async def test_both_ways_answer_alike(ways: Ways, name: str) -> None:
    """The same bytes but for ids and times; and only what the short way is for is taken by it."""
    request, is_taken = _ASKED[name]
    short = await ways.say(ways.short, request, _SENTINEL)
    assert ways.taken[:1] in ([], ["left"]) if not is_taken else ways.taken[0] in ("at once", "waits")
    long = await ways.say(ways.long, request, _SENTINEL)
    assert without_times(short) == without_times(long)
    assert short.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))
    assert ways.inside == 0


@pytest.mark.parametrize("name", _ASKED)
async def test_what_is_known_by_its_bytes_is_answered_alike(ways: Ways, name: str) -> None:
    """Asked again and again on one connection, with others between: known or not, it is answered as the long way."""
    request, is_taken = _ASKED[name]
    pieces = [_HIT, request, request, _HIT, request, get(PATH + NOWHERE), _HIT, _SENTINEL]
    short = await ways.say_in_turn(ways.short, *pieces)
    if not is_taken:
        assert request.replace(b"KEY", ways.edge.tokens["form"].encode()) not in ways.known
    elif b"orrelation-" not in request and b"If-None-" not in request:
        assert request.replace(b"KEY", ways.edge.tokens["form"].encode()) in ways.known
    long = await ways.say_in_turn(ways.long, *pieces)
    assert without_times(short) == without_times(long)
    assert ways.inside == 0


@pytest.mark.parametrize("seed", range(4))
async def test_bytes_may_be_cut_anywhere(ways: Ways, seed: int) -> None:
    """Requests known and new, whole, in parts and several at once: each is answered once, in order."""
    chance, key = random.Random(seed), ways.edge.tokens["form"].encode()
    kinds = [_HIT, _HIT, get(PATH + NOWHERE), get(PATH + "BN15"), get(PATH + CRABTREE, "Accept: */*"), get("/v1")]
    sent, pieces = [chance.choice(kinds).replace(b"KEY", key) for _ in range(60)], list[bytes]()
    for request in sent:
        cut = chance.choice([0, 0, 0, chance.randrange(len(request)), len(request) - 1])
        if pieces and chance.random() < 0.3:
            pieces[-1] += request[:cut]
        elif cut:
            pieces.append(request[:cut])
        pieces.append(request[cut:])
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.short, limit=1 << 26)
    for piece in [*pieces, _SENTINEL.replace(b"KEY", key)]:
        writer.write(piece)
        await asyncio.sleep(chance.choice([0, 0.001, 0.005]))
    async with asyncio.timeout(10):
        short = await reader.read(-1)
    writer.close()
    assert ways.known
    assert without_times(short) == without_times(await ways.say(ways.long, *sent, _SENTINEL))
    assert ways.inside == 0


async def test_what_a_client_holds_is_not_sent_again(ways: Ways) -> None:
    """304 with the headers of the answer, in a list and strong as well; the connection goes on."""
    labels = {"route": "/v1/lookups/{name}", "method": "GET"}
    before = [ways.edge.metric("silogate_http_requests_total", code=code, **labels) for code in ("304", "200")]
    etag = (await ways.say(ways.short, _HIT, _SENTINEL)).split(b"ETag: ")[1].split(b"\r\n")[0].decode()
    for held in (etag, etag.removeprefix("W/"), f'"x", {etag}'):
        request = get(PATH + CRABTREE, f"If-None-Match: {held}")
        short, long = [await ways.say(port, request, _HIT, _SENTINEL) for port in (ways.short, ways.long)]
        assert short.startswith(b"HTTP/1.1 304 Not Modified\r\n")
        assert short.count(b"HTTP/1.1 200 OK") == 2
        assert without_times(short) == without_times(long)
    after = [ways.edge.metric("silogate_http_requests_total", code=code, **labels) for code in ("304", "200")]
    assert [n - m for n, m in zip(after, before, strict=True)] == [6, 7]


async def test_requests_sent_at_once_are_answered_in_their_order(ways: Ways) -> None:
    """More than one connection may queue, of every kind, and answered by either way."""
    kinds = [PATH + CRABTREE, "/v1/lookups", PATH + "BN15", PATH + NOWHERE, PATH + "BN43 5TE", PATH + CRABTREE]
    requests = [get(kinds[n % 6], f"Silogate-Correlation-Id: request-{n:03}") for n in range(120)]
    said = await ways.say(ways.short, *requests, _SENTINEL)
    ids = [part.split(b"\r\n")[0].decode() for part in said.split(b"Silogate-Correlation-Id: ")[1:]]
    assert ids[:-1] == [f"request-{n:03}" for n in range(120)]
    assert {"left"} < set(ways.taken)
    assert ways.inside == 0
    alike = [without_times(await ways.say(port, *requests, _SENTINEL)) for port in (ways.short, ways.long)]
    assert alike[0] == alike[1]


async def test_a_request_that_comes_in_pieces_is_one(ways: Ways) -> None:
    """Bytes trickle in, also those of the next request behind the first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.short)
    sent = (_HIT + _HIT + _SENTINEL).replace(b"KEY", ways.edge.tokens["form"].encode())
    for at in range(0, len(sent), 37):
        writer.write(sent[at : at + 37])
        await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        said = await reader.read(-1)
    writer.close()
    assert said.count(b"HTTP/1.1 200 OK") == 3


async def test_a_key_without_the_scope_is_refused(ways: Ways) -> None:
    """403, and nothing is asked."""
    for port in (ways.short, ways.long):
        said = await ways.say(port, _HIT, _SENTINEL, token="nothing")
        assert said.startswith(b"HTTP/1.1 403 ")


async def test_a_revoked_key_is_refused_at_once(ways: Ways) -> None:
    """The short way knows the keys by the same snapshot."""
    keys, tokens = ways.edge.context.keys, ways.edge.tokens
    tokens["passing"] = await keys.add("passing", ["lookups:*"])
    assert (await ways.say(ways.short, _HIT, _SENTINEL, token="passing")).startswith(b"HTTP/1.1 200")
    assert (await ways.say(ways.short, _HIT, _SENTINEL, token="passing")).startswith(b"HTTP/1.1 200")
    said = await ways.say_in_turn(ways.short, _HIT, _HIT, _SENTINEL, token="passing")
    assert said.count(b"HTTP/1.1 200 ") == 3
    assert ways.known
    await keys.revoke(tokens["passing"].split("_")[1])
    assert (await ways.say(ways.short, _HIT, _SENTINEL, token="passing")).startswith(b"HTTP/1.1 401 ")
    assert (await ways.say_in_turn(ways.short, _HIT, _SENTINEL, token="passing")).startswith(b"HTTP/1.1 401 ")


async def test_a_full_process_refuses(ways: Ways) -> None:
    """503 with Retry-After at the limit of requests in flight, whichever way they came."""
    gate = ways.app[IN_FLIGHT].gate_of("lookup")
    gate.inside += gate._limit
    try:
        said = await ways.say(ways.short, _HIT, _SENTINEL)
    finally:
        gate.inside -= gate._limit
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"overloaded"' in said
    assert ways.taken[0] == "left"


async def test_a_fault_of_the_short_way_costs_one_request_nothing(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks there is met again, or not, by the long way; nothing stays counted as in flight."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Group, "weigh", broken)
    monkeypatch.setattr(Group, "at_hand", broken)
    said = await ways.say(ways.short, _HIT, _SENTINEL)
    assert said.startswith((b"HTTP/1.1 500 ", b"HTTP/1.1 200 "))
    assert said.count(b"HTTP/1.1 ") == 2
    assert ways.inside == 0


async def test_counters_and_lines_are_those_of_the_long_way(ways: Ways) -> None:
    """One count a request, by route, method and status, with its time."""
    metric = ways.edge.metric
    answers = {"route": "/v1/lookups/{name}", "method": "GET", "code": "200"}
    before = metric("silogate_http_requests_total", **answers)
    timed = metric("silogate_http_request_duration_seconds_count", route="/v1/lookups/{name}")
    await ways.say(ways.short, *[_HIT] * 10, _SENTINEL)
    assert metric("silogate_http_requests_total", **answers) == before + 10
    assert metric("silogate_http_request_duration_seconds_count", route="/v1/lookups/{name}") == timed + 10
