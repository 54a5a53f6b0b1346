"""Holds each key to the rate of the route's class."""

from __future__ import annotations

from aiohttp import web

from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE
from gateway.limits import rate_limited
from gateway.route import Handler
from gateway.serving import BUCKETS


@web.middleware
async def rate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a key that has used up its tokens; requests without a key were refused before."""
    exchange = request[EXCHANGE]
    if exchange.principal is not None and exchange.route is not None:
        rate_class = exchange.route.rate_class
        wait = request.app[BUCKETS].take(exchange.principal.id, rate_class)
        if wait:
            request.app[CONTEXT].metrics.rate_limited.labels(rate_class).inc()
            raise rate_limited(wait)
    return await handler(request)
