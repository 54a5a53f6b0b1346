"""What every event stream over HTTP does alike: how it begins, how it writes within a bound, and when it must end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import hdrs, web

from gateway.auth import Unauthenticated
from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE
from streams.outages import DATABASE_ERRORS

log = structlog.get_logger("gateway.live")

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# How long a client is to wait before it comes back: the first thing in each stream.
RETRY = b"retry: 2000\n\n"
_AUTH_S = 2.0


class Cut(Exception):
    """The reader is too slow."""


class Outlet:
    """The way to one client. `open` comes first; a write that does not end in time raises Cut and is counted."""

    def __init__(self, request: web.Request) -> None:
        context = request.app[CONTEXT]
        self.response = web.StreamResponse(headers=_HEADERS)
        self._request = request
        self._timeout_s = context.options.stream_write_timeout_s
        self._cut = context.metrics.live_cut.labels("write_timeout")

    async def open(self) -> None:
        await self.response.prepare(self._request)

    async def write(self, text: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.response.write(text)
        except TimeoutError:
            self._cut.inc()
            raise Cut from None


async def still_allowed(request: web.Request) -> bool:
    """Whether the key that opened the stream still may; while nobody can say, it goes on."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    header = request.headers.get(hdrs.AUTHORIZATION)
    try:
        principal = context.keys.known(header)
        if principal is None:
            async with asyncio.timeout(_AUTH_S):
                principal = await context.keys.principal(header)
    except Unauthenticated as error:
        context.metrics.auth_failures.labels(error.reason).inc()
        return False
    except DATABASE_ERRORS as error:
        log.warning("stream_key_unchecked", error_class=type(error).__name__)
        return True
    scope = exchange.route.policy.scope if exchange.route is not None else None
    return scope is None or principal.may(scope)


def hang_up(request: web.Request) -> Callable[[], None]:
    """Give what ends the connection at once, whatever is still to be written."""

    def abort() -> None:
        if request.transport is not None:
            request.transport.abort()

    return abort
