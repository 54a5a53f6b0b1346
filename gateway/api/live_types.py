"""All cases of a type as they change (server-sent events): from where the client was, then what happens.

The id of each event is a token of the place in the topic. A client that comes back with one is told everything since,
each case in its order; where that cannot be, it is told `reset` with a new token and goes on from there.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack, aclosing, suppress

import structlog
from aiohttp import web

from gateway import live_token
from gateway.api.streaming import RETRY, Cut, Outlet, hang_up, still_allowed
from gateway.context import CONTEXT, Context
from gateway.exchange import EXCHANGE
from gateway.live_replay import Full, Gone, Interrupted, distance
from gateway.live_token import BEGINNING, Malformed, OtherTopic, Spot, Spots
from gateway.live_types import Reason, TypeSubscription
from gateway.middleware.audited import record
from gateway.problems import Problem

log = structlog.get_logger("gateway.live")

# So near the tail that what comes meanwhile fits into the queue of a stream
_NEAR = 500
_AHEAD_S = 5.0
_PARAMETER = "type"


async def watch_types(request: web.Request) -> web.StreamResponse:
    """Streams until the client goes, its key is revoked, the process drains, or the reader is too slow.

    No personal data is ever sent.
    """
    context = request.app[CONTEXT]
    case_type = _case_type(request, context)
    request[EXCHANGE].subject = case_type
    begin, reason = _begin(request, context)
    async with AsyncExitStack() as stack:
        if begin is not None:
            await _come_near(context, begin)
        stream = _TypeStream(request, context, case_type, stack)
        if begin is None or _is_at(begin, context.live.types.spots):
            stream.join(reason)
            begin = None
        else:
            stream.reserve()
        async with asyncio.timeout(context.settings.write_timeout):
            await record(request, "case.watch_type", "opened")
        await stream.out.open()
        # A client that has gone is no error; one that is cut, or that Kafka left alone, comes back with its token.
        with suppress(ConnectionError, Cut, Interrupted):
            await stream.run(begin)
    return stream.out.response


class _TypeStream:
    """One client's stream: `join` it to the tail, or `reserve` a place to read what was missed; then `run`."""

    def __init__(self, request: web.Request, context: Context, case_type: str, stack: AsyncExitStack) -> None:
        self.out = Outlet(request)
        self._request = request
        self._live = context.live
        self._types = context.live.types
        self._case_type = case_type
        self._stack = stack
        self._place = stack.enter_context(ExitStack())
        self._heartbeat_s = context.options.heartbeat_s
        self._subscription: TypeSubscription | None = None
        self._first = RETRY

    def join(self, reason: Reason | None = None) -> TypeSubscription:
        """Subscribes at the place where the tail is; what is told first names that place, after a reset for a reason.

        Nothing may come between the two, so nothing is awaited here.
        """
        self._subscription = subscription = self._stack.enter_context(
            self._types.subscribe(self._case_type, hang_up(self._request))
        )
        self._first = RETRY + (self._here() if reason is None else self._types.reset_text(reason))
        return subscription

    def reserve(self) -> None:
        """Takes a place among those that read what they missed; raises Problem `overloaded`."""
        try:
            self._place.enter_context(self._live.replays.slot())
        except Full:
            detail = "Too many streams are reading what they missed. Try again shortly."
            raise Problem("overloaded", detail, headers={"Retry-After": "2"}) from None

    async def run(self, begin: Spots | None) -> None:
        """Tells what was missed since `begin`, if anything, then what comes."""
        await self.out.write(self._first)
        if self._subscription is None:
            await self._catch_up(begin or {})
            self._place.close()
        if self._subscription is not None:
            await self._go_on(self._subscription)

    async def _catch_up(self, begin: Spots) -> None:
        """Reads on until the tail is near, subscribes, and reads the rest up to where the subscription began."""
        async with self._live.replays.open() as replay:
            try:
                while self._subscription is None:
                    until = dict(self._types.spots)
                    if distance(begin, until) <= _NEAR:
                        self.join()
                    async with aclosing(replay.read(begin, until, self._case_type, self._types.told)) as texts:
                        async for text in texts:
                            await self.out.write(text)
                    begin = until
            except Gone as gone:
                (self._subscription or self.join()).take()
                # what was queued lies before the place that the reset names
                await self.out.write(self._types.reset_text(gone.reason))

    async def _go_on(self, subscription: TypeSubscription) -> None:
        clock = asyncio.get_running_loop().time
        asked = clock()
        while not subscription.cut:
            # by the clock and not at quiet moments only: busy cases must not keep a revoked key's stream open
            if clock() - asked >= self._heartbeat_s:
                if not await still_allowed(self._request):
                    return
                asked = clock()
            if await subscription.wait(self._heartbeat_s):
                if text := subscription.take():
                    await self.out.write(text)
            else:
                # a quiet type's client moves on too: else Kafka would forget where it was
                await self.out.write(b": still here\n" + self._here())
            if subscription.closed:
                return

    def _here(self) -> bytes:
        return b"id: %s\n\n" % self._types.token.encode()


def _case_type(request: web.Request, context: Context) -> str:
    for name in request.query:
        if name != _PARAMETER:
            raise Problem("unknown_parameter", "The only parameter is `type`.")
    given = request.query.getall(_PARAMETER, [])
    if not given:
        raise Problem("missing_parameter", "Name the case type.", field=_PARAMETER)
    if len(given) > 1:
        raise Problem("repeated_parameter", "Name one case type.", field=_PARAMETER)
    if given[0] not in context.case_types:
        raise Problem("unknown_case_type", "There is no such case type.", field=_PARAMETER)
    return given[0]


def _begin(request: web.Request, context: Context) -> tuple[Spots | None, Reason | None]:
    """Where the client was; None for one that is new, or whose place is in another topic, with the reason then."""
    types = context.live.types
    if not (context.live.tailing and types.spots):
        raise _unavailable()
    header = request.headers.get("Last-Event-ID")
    if not header:
        return None, None
    if header == BEGINNING:
        return {}, None
    try:
        return live_token.read(header, types.topic), None
    except OtherTopic:
        return None, "other_topic"
    except Malformed:
        detail = "Send the id of the last event you have seen, or 0 for all that is kept."
        raise Problem("malformed_last_event_id", detail, field="Last-Event-ID") from None


async def _come_near(context: Context, begin: Spots) -> None:
    """Waits for our tail when another process's was ahead. A place that never comes is judged when it is read."""
    known = {number: spot for number, spot in begin.items() if number in context.live.types.spots}
    await context.live.types.reached(known, _AHEAD_S)


def _is_at(begin: Spots, spots: Spots) -> bool:
    """Whether nothing was missed: the same places after the same records."""
    return begin.keys() == spots.keys() and all(_same(spot, spots[number]) for number, spot in begin.items())


def _same(one: Spot, other: Spot) -> bool:
    return one.offset == other.offset and (one.mark == other.mark or not one.mark)


def _unavailable() -> Problem:
    return Problem("events_unavailable", "Kafka cannot be read now. Try again shortly.", headers={"Retry-After": "2"})
