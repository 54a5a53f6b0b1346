"""Ends a request at its deadline, whatever it is waiting for."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.exchange import EXCHANGE
from gateway.route import Handler


@web.middleware
async def deadline(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raises TimeoutError at the deadline; streams have none."""
    when = request[EXCHANGE].deadline
    if when is None:
        return await handler(request)
    async with asyncio.timeout_at(when):
        return await handler(request)
