"""Opens the exchange: correlation id, deadline, metrics, and one log line a request."""

from __future__ import annotations

import asyncio
import re
from uuid import uuid4

import structlog
from aiohttp import web

from gateway.context import CONTEXT, Context
from gateway.exchange import EXCHANGE, Exchange
from gateway.route import Handler, Route
from gateway.serving import IN_FLIGHT, ROUTE_OF
from gateway.telemetry import UNMATCHED

CORRELATION = "Silogate-Correlation-Id"
_CORRELATION_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
_CLIENT_CLOSED = 499

log = structlog.get_logger("gateway.access")


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every request, served or refused, is counted and logged once, without its query or its body."""
    context = request.app[CONTEXT]
    started = asyncio.get_running_loop().time()
    route = request.app[ROUTE_OF].get(request.match_info.handler)
    exchange = Exchange(_correlation_id(request), started, route, _deadline(context, route, started))
    request[EXCHANGE] = exchange
    structlog.contextvars.bind_contextvars(correlation_id=exchange.correlation_id)
    status = _CLIENT_CLOSED
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        seconds = asyncio.get_running_loop().time() - started
        _count(request, context, route, status, seconds)
        if status >= 400 or request.app[IN_FLIGHT].is_sampled():
            _write_line(request, exchange, status, seconds)


def _correlation_id(request: web.Request) -> str:
    given = request.headers.get(CORRELATION)
    return given if given is not None and _CORRELATION_ID.fullmatch(given) else str(uuid4())


def _deadline(context: Context, route: Route | None, started: float) -> float | None:
    kind = "write" if route is None else route.rate_class
    if kind == "stream":
        return None
    if kind == "lookup":
        return started + context.settings.lookup_timeout
    if kind == "upload":
        return started + context.options.upload_timeout_s
    return started + context.settings.write_timeout


def _count(request: web.Request, context: Context, route: Route | None, status: int, seconds: float) -> None:
    path = UNMATCHED if route is None else route.path
    is_stream = route is not None and route.rate_class == "stream" and status < 400
    context.metrics.answered(path, request.method, status, None if is_stream else seconds)


def _write_line(request: web.Request, exchange: Exchange, status: int, seconds: float) -> None:
    log.info(
        "request",
        method=request.method,
        route=UNMATCHED if exchange.route is None else exchange.route.path,
        status=status,
        ms=round(seconds * 1000, 2),
        actor=exchange.actor,
    )
