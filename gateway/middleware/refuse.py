"""Turns every error into one problem document; what nobody expected is logged and tells the caller nothing."""

from __future__ import annotations

import structlog
from aiohttp import web

from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE
from gateway.problems import as_problem
from gateway.route import Handler
from gateway.telemetry import EdgeMetrics

log = structlog.get_logger("gateway.edge")


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers errors with application/problem+json."""
    try:
        return await handler(request)
    # The last one to catch: an error that goes on from here would become aiohttp's own page, with no code and no id.
    except Exception as error:  # noqa: BLE001
        return refusal(error, request.app[CONTEXT].metrics, request[EXCHANGE].correlation_id)


def refusal(error: Exception, metrics: EdgeMetrics, correlation_id: str) -> web.Response:
    """The answer to an error: counted, and logged if it is a fault."""
    problem = as_problem(error)
    if problem.status >= 500:
        cause = error.__cause__ if error is problem and error.__cause__ is not None else error
        write = log.error if problem.code == "internal_error" else log.warning
        write("request_failed", code=problem.code, exc_info=cause)
    metrics.problems.labels(_counted(problem.code)).inc()
    return problem.response(correlation_id)


def _counted(code: str) -> str:
    # one series for all value types; the code itself goes to the caller
    return "malformed_parameter" if code.startswith("malformed_") else code
