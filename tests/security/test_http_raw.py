"""Requests as no client library writes them: none is served, none breaks the server, none smuggles another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.dev.addresses import Servers
from tests.integration.edge import Edge, gateway_schema, running_edge


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


async def _send(edge: Edge, head: bytes, body: bytes = b"") -> bytes:
    """Everything the server says to these bytes until it closes or falls silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.public.port)
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


async def test_the_server_does_not_say_what_it_is_made_of(edge: Edge) -> None:
    """No version of anything in the Server header."""
    answer = await _send(edge, b"GET /v1/lookups HTTP/1.1\r\n" + _AUTH + b"\r\n")
    assert b"\r\nServer: silogate\r\n" in answer


async def test_an_expectation_that_we_do_not_know_is_a_problem_too(edge: Edge) -> None:
    """417 as problem+json, although it is answered before anything else runs."""
    answer = await _send(edge, b"POST /v1/cases HTTP/1.1\r\n" + _AUTH + b"Expect: gold\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 417")
    assert b'"code":"expectation_failed"' in answer
