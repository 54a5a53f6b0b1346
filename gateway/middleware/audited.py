"""Leaves exactly one audit row for each request about a person, committed before the answer is sent."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from gateway.audit import AuditUnavailable
from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE, Exchange
from gateway.problems import IN_DOUBT, Problem, as_problem
from gateway.route import Handler
from gateway.serving import LOOKUPS


@web.middleware
async def audited(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Records what was done and what was refused alike; without its row no answer goes out."""
    exchange = request[EXCHANGE]
    action = _action(request, exchange)
    if action is None:
        return await handler(request)
    try:
        response = await handler(request)
    except asyncio.CancelledError:
        # The process ends: what was begun may have been read or done, but there is no time left to wait for the row.
        if not exchange.audited:
            exchange.audited = True
            request.app[CONTEXT].audit.note(**_row(exchange, action, "cancelled"))
        raise
    # Whatever goes wrong leaves its row, and is then raised as what it was.
    except Exception as error:
        if not exchange.audited:
            await record(request, action, as_problem(error).code)
        raise
    if not exchange.audited:
        await record(request, action, exchange.outcome or "done")
    return response


async def record(request: web.Request, action: str, outcome: str) -> None:
    """Commits the request's row; raises Problem `audit_unavailable` when that cannot be done in time."""
    exchange = request[EXCHANGE]
    exchange.audited = True
    try:
        await request.app[CONTEXT].audit.record(**_row(exchange, action, outcome))
    except AuditUnavailable as error:
        detail = f"The audit log cannot be written. {IN_DOUBT}"
        raise Problem("audit_unavailable", detail, headers={"Retry-After": "1"}) from error


def _row(exchange: Exchange, action: str, outcome: str) -> dict[str, Any]:
    return {
        "actor": exchange.actor,
        "action": action,
        "subject": exchange.subject,
        "outcome": outcome,
        "correlation_id": exchange.correlation_id,
        "detail": exchange.detail,
    }


def _action(request: web.Request, exchange: Exchange) -> str | None:
    if exchange.route is None:
        return None
    if exchange.route.policy.kind == "lookup":
        lookup = request.app[LOOKUPS].get(request.match_info["name"])
        return f"lookup.{lookup.name}" if lookup is not None and lookup.personal else None
    return exchange.route.audit
