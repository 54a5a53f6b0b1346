"""Lets a key do only what its scopes name."""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway.exchange import EXCHANGE, Exchange
from gateway.problems import Problem
from gateway.route import Handler
from gateway.serving import LOOKUPS


@web.middleware
async def permit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a key without the route's scope, or without the scope of the lookup it asks."""
    exchange = request[EXCHANGE]
    if exchange.route is not None:
        wanted = _wanted(request, exchange)
        if wanted is not None:
            raise Problem("forbidden", f"The key lacks the scope {wanted}.", field=hdrs.AUTHORIZATION)
    return await handler(request)


def _wanted(request: web.Request, exchange: Exchange) -> str | None:
    route, principal = exchange.route, exchange.principal
    if route is None or route.policy.kind in ("open", "key"):
        return None
    if route.policy.kind == "lookup":
        lookup = request.app[LOOKUPS].get(request.match_info["name"])
        if lookup is None:
            raise Problem("unknown_lookup", "There is no lookup of this name.", field="name")
        allowed = principal is not None and principal.may_ask(lookup.scope, personal=lookup.personal)
        return None if allowed else lookup.scope
    scope = route.policy.scope or ""
    return None if principal is not None and principal.may(scope) else scope
