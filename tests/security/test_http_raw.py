"""Requests as no client library writes them: none is served, none breaks the server, none smuggles another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.dev.addresses import Servers
from gateway.protocol import Runner
from gateway.server import build_public_app
from tests.integration.edge import Edge, gateway_schema, running_edge


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


@pytest.fixture(scope="module")
async def port(edge: Edge) -> AsyncIterator[int]:
    """The public application on a port as `silogate serve` opens it."""
    runner = Runner(build_public_app(edge.context), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def _send(edge: Edge, head: bytes, body: bytes = b"", *, port: int | None = None) -> bytes:
    """Everything the server says to these bytes until it closes or falls silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port or edge.public.port)
    said = b""
    try:
        writer.write(head.replace(b"KEY", edge.tokens["form"].encode()) + body)
        await writer.drain()
        async with asyncio.timeout(5):
            while chunk := await reader.read(65_536):
                said += chunk
    except ConnectionError:
        pass
    finally:
        writer.close()
    return said


_AUTH = b"Host: silogate\r\nAuthorization: Bearer KEY\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/cases/../lookups HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET /v1/cases/%2e%2e/lookups HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET //v1/lookups HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET /v1/lookups%00 HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET /v1/lookups/..%2fcases HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET /v1/lookups/%c0%ae%c0%ae HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET /v1/lookups\t HTTP/1.1\r\n" + _AUTH + b"\r\n",
    ],
)
async def test_a_tricky_path_reaches_nothing(edge: Edge, head: bytes) -> None:
    """4xx, whatever the path tries."""
    answer = await _send(edge, head)
    assert answer.startswith((b"HTTP/1.1 40", b"HTTP/1.0 40")), answer[:200]


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 6\r\nContent-Length: 7\r\n",
        b"Content-Length: +6\r\n",
        b"Content-Length: 6, 6\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"X-Long: " + b"x" * 70_000 + b"\r\n",
        b"X-Bad\x00: 1\r\n",
        b" folded: 1\r\n",
    ],
)
async def test_an_ambiguous_request_is_refused_and_smuggles_nothing(edge: Edge, headers: bytes) -> None:
    """One refusal, then the connection is closed: the bytes behind it never become a second request."""
    hidden = b"0\r\n\r\nGET /v1/lookups HTTP/1.1\r\n" + _AUTH.replace(b"KEY", edge.tokens["form"].encode()) + b"\r\n"
    host = _AUTH.replace(b"Connection: close\r\n", b"")
    answer = await _send(edge, b"POST /v1/cases HTTP/1.1\r\n" + host + headers + b"\r\n", hidden)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:200]
    assert b"200 OK" not in answer
    assert b'"lookups"' not in answer


@pytest.mark.parametrize(
    "head",
    [
        b"needle\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01needle\r\n\r\n",
        b"GET /needle HTTP/9\r\n\r\n",
        b"GET /" + b"needle" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/lookups HTTP/1.1\r\nX-Long: " + b"needle" * 10_000 + b"\r\n\r\n",
        b"GET /v1/lookups HTTP/1.1\r\nneedle\r\n\r\n",
        b"POST /v1/cases HTTP/1.1\r\nContent-Length: needle\r\n\r\n",
        b"POST /v1/cases HTTP/1.1\r\nContent-Length: -1\r\nX: needle\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_a_problem_that_repeats_nothing_of_it(
    edge: Edge, port: int, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Answered like every other refusal: the same document and headers, none of the bytes, and then closed."""
    with capture_logs() as logged:
        answer = await _send(edge, head, port=port)
    top, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in top.split(b"\r\n")[1:])
    assert top.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer[:200]
    assert headers[b"Server"] == b"silogate"
    assert headers[b"Content-Type"] == b"application/problem+json"
    assert headers[b"Cache-Control"] == b"no-store"
    document = orjson.loads(body)
    assert (document["status"], document["code"]) == (400, "bad_request")
    assert document["correlation_id"].encode() == headers[b"Silogate-Correlation-Id"]
    assert b"needle" not in answer
    assert [line["event"] for line in logged] == ["request_malformed"]
    assert "needle" not in str(logged) + caplog.text


async def test_a_port_that_refuses_still_serves(edge: Edge, port: int) -> None:
    """A sound request is answered by the application, and one behind a broken request is not answered at all."""
    sound = b"GET /v1/lookups HTTP/1.1\r\n" + _AUTH + b"\r\n"
    assert (await _send(edge, sound, port=port)).startswith(b"HTTP/1.1 200 OK")
    assert b"200 OK" not in await _send(edge, b"needle\r\n\r\n" + sound, port=port)


async def test_the_server_does_not_say_what_it_is_made_of(edge: Edge) -> None:
    """No version of anything in the Server header."""
    answer = await _send(edge, b"GET /v1/lookups HTTP/1.1\r\n" + _AUTH + b"\r\n")
    assert b"\r\nServer: silogate\r\n" in answer


async def test_an_expectation_that_we_do_not_know_is_a_problem_too(edge: Edge) -> None:
    """417 as problem+json, although it is answered before anything else runs."""
    answer = await _send(edge, b"POST /v1/cases HTTP/1.1\r\n" + _AUTH + b"Expect: gold\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 417")
    assert b'"code":"expectation_failed"' in answer
