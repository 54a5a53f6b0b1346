"""What is answered to bytes that are no HTTP request: a problem document like any other, which repeats none of them.

aiohttp answers them before an application is asked: as text that quotes the bytes, with its own name and version. Up to
3.14 it has no public way to choose the protocol class, so the private pieces that this takes are here and nowhere else:
`AppRunner._make_server`, and `_kwargs` and `_loop` of its Server.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.middleware.observe import CORRELATION
from gateway.problems import Problem, as_problem

log = structlog.get_logger("gateway.protocol")


class Runner(web.AppRunner):
    """An AppRunner whose connections refuse as the application does."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **plain._kwargs,  # noqa: SLF001 - said above
        )


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp passes it by position
    ) -> web.StreamResponse:
        """The refusal, after which the connection is closed. `message` quotes the bytes, so nothing uses it."""
        fault = status >= 500
        if fault:
            log.error("request_failed", error_class=type(exc).__name__, exc_info=exc)
        else:
            # without the error, whose text and traceback quote the bytes too
            log.info("request_malformed", error_class=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer was sent already")
        response = _refusal(fault=fault)
        response.force_close()
        return response


def _refusal(*, fault: bool) -> web.Response:
    correlation_id = str(uuid4())
    problem = as_problem(RuntimeError()) if fault else Problem("bad_request", "This is not a request in HTTP/1.1.")
    response = problem.response(correlation_id)
    more: dict[str, Any] = {CORRELATION: correlation_id, "Server": "silogate", "X-Content-Type-Options": "nosniff"}
    response.headers.update(more)
    return response
