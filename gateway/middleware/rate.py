"""Holds each key to the rate of the route's class."""

from __future__ import annotations

from aiohttp import web

from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE
from gateway.limits import rate_limited
from gateway.route import Handler, Route
from gateway.serving import BUCKETS, LOOKUPS


@web.middleware
async def rate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a key that has used up its tokens; requests without a key were refused before."""
    exchange = request[EXCHANGE]
    if exchange.principal is not None and exchange.route is not None:
        rate_class = _class_of(request, exchange.route)
        wait = request.app[BUCKETS].take(exchange.principal.id, rate_class)
        if wait:
            request.app[CONTEXT].metrics.rate_limited.labels(rate_class).inc()
            raise rate_limited(wait)
    return await handler(request)


def _class_of(request: web.Request, route: Route) -> str:
    """The route's class; of a question, the class that its lookup declares."""
    lookup = request.app[LOOKUPS].get(request.match_info["name"]) if route.policy.kind == "lookup" else None
    return route.rate_class if lookup is None else lookup.rate
