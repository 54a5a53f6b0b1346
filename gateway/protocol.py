"""Connections: what aiohttp's own do is changed here in two ways, and nowhere else.

What is no HTTP request is answered with a problem document like any other, which repeats none of its bytes. aiohttp
answers it before an application is asked: as text that quotes the bytes, with its own name and version.

What `gateway.direct` can answer is answered where it was parsed, before a task is woken for it.

Up to 3.14 aiohttp has no public way to either, so this file uses private pieces of its Server and its RequestHandler.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.direct import DIRECT, Direct, InHand
from gateway.problems import Problem, as_problem
from gateway.serving import CORRELATION

log = structlog.get_logger("gateway.protocol")


# What the short way needs of aiohttp's own connection. Where one of them is missing, every request goes the long way.
_NEEDED = ("_messages", "_waiter", "_request_handler", "_request_in_progress", "_handler_waiter", "_close")
HAS_SHORT_WAY = (
    set(_NEEDED) <= set(RequestHandler.__slots__)
    and hasattr(HttpRequestParser, "message_consumed")
    and hasattr(RequestHandler, "_resume_reading_if_drained")
)
# A client that takes nothing of its answer for so long is cut off: what it was sent stays in memory.
_STALLED_S = 30.0
_END = b"\r\n\r\n"
_READ_BYTES = 64 << 10


class Runner(web.AppRunner):
    """An AppRunner whose connections refuse as the application does, and know its short way."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        server = _Server(
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **plain._kwargs,  # noqa: SLF001 - said above
        )
        server.direct = self.app.get(DIRECT) if HAS_SHORT_WAY else None
        return server


class _Server(web.Server):
    direct: Direct | None = None

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """One connection. While the handler task waits for a request, `_go_on` may answer it in its place.

    Requests stay in `_messages` until they are answered or the task takes them, so their order is that of aiohttp, and
    so are its limits. Only one of both works at a time: the task sleeps as long as its waiter has no result.
    """

    __slots__ = ("_direct", "_going_on", "_in_hand", "_is_between", "_stalled", "_unread")

    def __init__(self, manager: _Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._direct = manager.direct
        self._in_hand: InHand | None = None
        self._going_on = False
        self._stalled: asyncio.TimerHandle | None = None
        # Whether aiohttp's parser waits for the first byte of a request.
        self._is_between = True
        # The request in hand where aiohttp's parser has not seen it.
        self._unread: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The event loop asks the kernel for this many bytes at a time. From 128 KiB on, its own default, the C library
        # maps and unmaps memory for each request, which takes longer than to parse it.
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if self._direct is None or waiter is None or waiter.done():
            self._is_between = False
            super().data_received(data)
            return
        if self._in_hand is None and self._is_between and not self._messages and self._takes_more:
            begun = self._direct.again(data, self._told)
            if isinstance(begun, bytes):
                self._answer(begun)
                return
            if begun is not None:
                self._unread = data
                self._take(begun)
                return
        elif self._unread is not None:
            self._read()
        is_whole = self._parse(data, waiter)
        if self._messages and self._in_hand is None and not self._going_on:
            self._go_on(data if is_whole else None)

    @property
    def _takes_more(self) -> bool:
        return not (self._paused or self._going_on or self._buffer_paused or self._close or self._force_close)

    def _parse(self, data: bytes, waiter: asyncio.Future[None]) -> bool:
        """Parsed and queued by aiohttp as ever, but for waking the task. Whether it was one request and no more."""
        before, was_between = len(self._messages), self._is_between
        self._waiter = None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        # Whatever came last, it was a request without a body that these bytes ended: an unfinished one would not end
        # in an empty line. Only a parser that was stopped may hold more.
        self._is_between = (
            len(self._messages) > before
            and data.endswith(_END)
            and not self._buffer_paused
            and _is_plain(*self._messages[-1])
        )
        is_alone = len(self._messages) == 1 and data.find(_END) + len(_END) == len(data)
        return was_between and self._is_between and is_alone

    def _read(self) -> None:
        """Let aiohttp's parser see what is in hand, so that it stands where it should."""
        unread, self._unread = self._unread, None
        if unread is not None and self._parser is not None:
            # not by `data_received`, which takes nothing while the process stops
            messages, _, _ = self._parser.feed_data(unread)
            self._messages.extend(messages)

    def _take(self, begun: InHand) -> None:
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._in_hand = begun
        self._request_in_progress = True

    def _go_on(self, data: bytes | None = None) -> None:
        """Answer what is there and can be; wake the task for what cannot. `data` is the only request, where it is."""
        self._going_on = True
        try:
            while self._messages and self._direct is not None:
                message, payload = self._messages[0]
                if self._paused or payload is not EMPTY_PAYLOAD or isinstance(message, _ErrInfo):
                    break
                begun = self._direct.begin(message, self._told)
                if begun is None:
                    break
                if data is not None:
                    self._direct.learn(data, message)
                    data = None
                if not isinstance(begun, bytes):
                    self._take(begun)
                    return
                self._send(begun)
        finally:
            self._going_on = False
        if self._messages and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _send(self, wire: bytes) -> None:
        """The answer to the first message, which is thereby dealt with."""
        if self._unread is None:
            self._messages.popleft()
            if self._parser is not None:
                self._parser.message_consumed()
        self._unread = None
        self._answer(wire)
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    def _answer(self, wire: bytes) -> None:
        if self._manager is not None:
            self._manager.requests_count += 1
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(wire)

    def _told(self, wire: bytes | None) -> None:
        """What was in hand has its answer, or else the task has to find it."""
        try:
            self._deal_with(wire)
        # Whoever tells it has answers for other connections too, from Redis or the silo: a fault of this one must not
        # end that. What this client is owed is not known now, so it is owed nothing more.
        except Exception:
            log.exception("connection_failed")
            if self.transport is not None:
                self.transport.abort()

    def _deal_with(self, wire: bytes | None) -> None:
        in_hand, waiter = self._in_hand, self._waiter
        if in_hand is None:
            return
        if wire is None and self.transport is not None and waiter is not None and not waiter.done():
            self._read()
            self._request_handler = self._finish
            waiter.set_result(None)
            return
        self._in_hand = None
        if wire is None:
            in_hand.drop()
        elif self.transport is not None:
            # Sending may let aiohttp read on and so come back here: the next request is taken below, once.
            self._going_on = True
            try:
                self._send(wire)
            finally:
                self._going_on = False
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        if self._close:
            self.close()
        elif self.transport is not None and self._messages and self._in_hand is None:
            self._go_on()

    async def _finish(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Handles the one request that was in hand."""
        in_hand, self._in_hand = self._in_hand, None
        if self._manager is not None:
            self._request_handler = self._manager.request_handler
        if in_hand is None:
            raise ConnectionError("nothing was in hand")
        return await in_hand.finish()

    def close(self) -> None:
        if self._in_hand is None:
            super().close()
        else:
            # the task may still be needed for what is in hand
            self._close = True

    def connection_lost(self, exc: BaseException | None) -> None:
        self._watch_reader(is_stalled=False)
        in_hand, waiter, task = self._in_hand, self._waiter, self._task_handler
        is_woken = waiter is not None and waiter.done()
        if in_hand is not None and in_hand.is_told:
            self._in_hand = None
            in_hand.drop()
            is_woken = True
        if is_woken and task is not None:
            # Woken within this turn, it has not come to its request yet: what it needs for that is taken away now.
            task.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(is_stalled=True)

    def resume_writing(self) -> None:
        self._watch_reader(is_stalled=False)
        super().resume_writing()

    def _watch_reader(self, *, is_stalled: bool) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if is_stalled and self.transport is not None:
            left = self.transport.get_write_buffer_size()
            self._stalled = self._loop.call_later(_STALLED_S, self._cut_if_stalled, left)

    def _cut_if_stalled(self, before: int) -> None:
        """A slow reader is one that takes something; who takes nothing is cut off."""
        if self.transport is None:
            return
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._stalled = self._loop.call_later(_STALLED_S, self._cut_if_stalled, left)
        else:
            self.transport.abort()

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


def _is_plain(message: RawRequestMessage | _ErrInfo, payload: StreamReader) -> bool:
    return payload is EMPTY_PAYLOAD and not isinstance(message, _ErrInfo) and not message.upgrade


def _refusal(*, fault: bool) -> web.Response:
    correlation_id = str(uuid4())
    problem = as_problem(RuntimeError()) if fault else Problem("bad_request", "This is not a request in HTTP/1.1.")
    response = problem.response(correlation_id)
    more: dict[str, Any] = {CORRELATION: correlation_id, "Server": "silogate", "X-Content-Type-Options": "nosniff"}
    response.headers.update(more)
    return response
