"""Refuses what would be too much at once, before anything is spent on it."""

from __future__ import annotations

from aiohttp import web

from gateway.exchange import EXCHANGE
from gateway.route import Handler
from gateway.serving import IN_FLIGHT


@web.middleware
async def shed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keeps requests, streams and uploads each below their own limit."""
    route = request[EXCHANGE].route
    with request.app[IN_FLIGHT].gate_of(None if route is None else route.rate_class).pass_through():
        return await handler(request)
