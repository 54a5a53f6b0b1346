"""A case's events as they happen (server-sent events): its history first, then what is new, without gap or double."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import orjson
import structlog
from aiohttp import web

from gateway.api.cases import case_id_of
from gateway.api.streaming import RETRY, Cut, Outlet, hang_up, still_allowed
from gateway.context import CONTEXT, Context
from gateway.live import Subscription
from gateway.middleware.audited import record
from gateway.problems import Problem
from streams.events import CaseEvent
from streams.outages import DATABASE_ERRORS

log = structlog.get_logger("gateway.live")

_LAST_EVENT_ID = re.compile(r"0|[1-9][0-9]{0,17}")
_VERSION = "select version from cases where id = $1"
_PAGE = 200


async def watch_case(request: web.Request) -> web.StreamResponse:
    """Streams until the client goes, its key is revoked, the process drains, or the reader is too slow.

    No personal data is ever sent.
    """
    context = request.app[CONTEXT]
    case_id = case_id_of(request)
    last = _last_event_id(request)
    with context.live.subscribe(case_id, hang_up(request)) as subscription:
        async with asyncio.timeout(context.settings.write_timeout):
            version = await context.pool.fetchval(_VERSION, case_id)
            if version is None:
                raise Problem("unknown_case", "There is no case with this id.", field="id")
            # an id that the case never had, as after a restore: the whole history is better than silence
            subscription.told = last if last <= version else 0
            page = await context.cases.history(case_id, subscription.told, limit=_PAGE)
            await record(request, "case.watch", "opened")
        out = Outlet(request)
        await out.open()
        # A client that has gone is no error, and one that is cut comes back with Last-Event-ID.
        with suppress(ConnectionError, Cut):
            await _Stream(out, subscription, context, lambda: still_allowed(request)).run(page)
    return out.response


class _Stream:
    """One client's stream: what it was told, and what it still has to be."""

    def __init__(
        self,
        out: Outlet,
        subscription: Subscription,
        context: Context,
        allowed: Callable[[], Awaitable[bool]],
    ) -> None:
        self._out = out
        self._allowed = allowed
        self._subscription = subscription
        self._cases = context.cases
        self._heartbeat_s = context.options.heartbeat_s

    async def run(self, first: list[CaseEvent]) -> None:
        """Sends `first`, the oldest page of the history, then the rest of it, then what comes."""
        await self._out.write(RETRY)
        await self._send(first)
        if len(first) == _PAGE:
            await self._send_history()
        clock = asyncio.get_running_loop().time
        asked = clock()
        while not self._subscription.cut:
            # by the clock and not at quiet moments only: a busy case must not keep a revoked key's stream open
            if clock() - asked >= self._heartbeat_s:
                if not await self._allowed():
                    return
                asked = clock()
            if await self._subscription.wait(self._heartbeat_s):
                await self._send_news()
            else:
                await self._out.write(b": still here\n\n")
            if self._subscription.closed:
                return

    async def _send_news(self) -> None:
        events, behind = self._subscription.take()
        for event in events:
            if event.version > self._subscription.told + 1 and not await self._send_history():
                return
            await self._send([event])
        if behind > self._subscription.told:
            await self._send_history()

    async def _send_history(self) -> bool:
        """Sends everything in Postgres after what was told; false when Postgres is away.

        The subscription was open before, so nothing falls in between. A failure ends nothing: what is missing is not
        counted as told, and the next sweep finds it.
        """
        while True:
            try:
                page = await self._cases.history(self._subscription.case_id, self._subscription.told, limit=_PAGE)
            except DATABASE_ERRORS as error:
                log.warning("stream_behind", error_class=type(error).__name__)
                return False
            await self._send(page)
            if len(page) < _PAGE:
                return True

    async def _send(self, events: list[CaseEvent]) -> None:
        text = bytearray()
        for event in events:
            if event.version > self._subscription.told:
                text += _as_text(event)
                self._subscription.told = event.version
        if text:
            await self._out.write(bytes(text))


def _as_text(event: CaseEvent) -> bytes:
    """One message: the version as its id, and what changed, but no value of the document other than its status."""
    data = {
        "version": event.version,
        "type": event.type,
        "at": event.at,
        "status": event.status,
        "changed": event.changed,
    }
    shown = orjson.dumps(data, option=orjson.OPT_UTC_Z)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.version, event.type.encode(), shown)


def _last_event_id(request: web.Request) -> int:
    header = request.headers.get("Last-Event-ID") or "0"
    if not _LAST_EVENT_ID.fullmatch(header):
        raise Problem("malformed_last_event_id", "Send the id of the last event you have seen.", field="Last-Event-ID")
    return int(header)
