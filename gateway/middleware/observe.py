"""Opens the exchange: correlation id, deadline, metrics, and one log line a request."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from uuid import uuid4

import structlog
from aiohttp import web

from gateway.context import CONTEXT, Context
from gateway.exchange import EXCHANGE, Exchange
from gateway.route import Handler, Route
from gateway.serving import CORRELATION, IN_FLIGHT, ROUTE_OF, InFlight
from gateway.telemetry import UNMATCHED, EdgeMetrics

CLIENT_CLOSED = 499
_CORRELATION_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
_PROCESS = str(uuid4())[:24]
_SPREAD = secrets.randbits(47) << 1 | 1
_numbers = itertools.count(secrets.randbits(32))

log = structlog.get_logger("gateway.access")


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every request, served or refused, is counted and logged once, without its query or its body."""
    context = request.app[CONTEXT]
    started = asyncio.get_running_loop().time()
    route = request.app[ROUTE_OF].get(request.match_info.handler)
    correlation_id = correlation_id_of(request.headers.get(CORRELATION))
    exchange = Exchange(correlation_id, started, route, deadline_of(context, route, started))
    request[EXCHANGE] = exchange
    structlog.contextvars.bind_contextvars(correlation_id=exchange.correlation_id)
    status = CLIENT_CLOSED
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        observed(context.metrics, request.app[IN_FLIGHT], exchange, request.method, status)


def correlation_id_of(given: str | None) -> str:
    """The caller's, if it is one; else a new one, which no other process gives out either."""
    if given is not None and _CORRELATION_ID.fullmatch(given):
        return given
    # Shaped as a UUID, whose first 80 bits are random and this process's own. A UUID for each would ask the kernel for
    # randomness each time, at a tenth of the cost of an answer. The factor is odd, so no number comes twice; it keeps
    # the ids from telling how many were asked.
    return f"{_PROCESS}{next(_numbers) * _SPREAD & 0xFFFF_FFFF_FFFF:012x}"


def deadline_of(context: Context, route: Route | None, started: float) -> float | None:
    """When a request must be answered, in the event loop's clock; None for a stream."""
    kind = "write" if route is None else route.rate_class
    if kind == "stream":
        return None
    if kind == "lookup":
        return started + context.settings.lookup_timeout
    if kind == "upload":
        return started + context.options.upload_timeout_s
    return started + context.settings.write_timeout


def observed(metrics: EdgeMetrics, in_flight: InFlight, exchange: Exchange, method: str, status: int) -> None:
    """Counts a request that is over, and logs it if it is one that is logged: once, without its query or its body."""
    route = exchange.route
    path = UNMATCHED if route is None else route.path
    seconds = asyncio.get_running_loop().time() - exchange.started
    is_stream = route is not None and route.rate_class == "stream" and status < 400
    metrics.answered(path, method, status, None if is_stream else seconds)
    if in_flight.is_logged(route, status):
        log.info(
            "request",
            method=method,
            route=path,
            status=status,
            ms=round(seconds * 1000, 2),
            actor=exchange.actor,
            correlation_id=exchange.correlation_id,
        )
