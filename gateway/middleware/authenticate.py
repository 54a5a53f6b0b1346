"""Finds out who is asking. A route is closed unless its policy says that it is open, and why."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from gateway.auth import Unauthenticated
from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE, TO_SEND_S, Exchange
from gateway.problems import Problem
from gateway.route import Handler

_AUTH_S = 2.0
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="silogate"'}


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests without a valid key; addresses that no route serves go on to their 404."""
    exchange = request[EXCHANGE]
    route = exchange.route
    if route is not None and route.policy.kind != "open":
        context = request.app[CONTEXT]
        header = request.headers.get(hdrs.AUTHORIZATION)
        try:
            exchange.principal = context.keys.known(header)
            if exchange.principal is None:
                async with asyncio.timeout(_time_for(exchange)):
                    exchange.principal = await context.keys.principal(header)
        except Unauthenticated as error:
            context.metrics.auth_failures.labels(error.reason).inc()
            detail = "Send a valid API key as a bearer token."
            raise Problem("unauthenticated", detail, field=hdrs.AUTHORIZATION, headers=_CHALLENGE) from None
    return await handler(request)


def _time_for(exchange: Exchange) -> float:
    """In seconds: the refusal of a key that cannot be checked leaves before the deadline, too."""
    if exchange.deadline is None:
        return _AUTH_S
    return min(_AUTH_S, exchange.deadline - TO_SEND_S - asyncio.get_running_loop().time())
