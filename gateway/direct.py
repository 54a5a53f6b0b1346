"""The short way of the question that is asked most: a GET of a public lookup whose answer is in the cache.

The long way, through router and middleware, costs several times what the answer does. This one is taken by nothing
else: whatever is unusual about a request, and every refusal, is left to the long way, which begins from the start. Both
decide by the same functions and count in the same metrics, and a test compares what they answer, byte by byte.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

import structlog
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage

from cache.answer import Answer
from cache.group import Group, Looked
from cache.loaded import Loaded
from cache.loader import Caller
from cache.question import Question
from cache.reads import Reading
from gateway.api.lookups import answered, get_lookup, time_left
from gateway.auth import Principal, Unauthenticated
from gateway.context import CONTEXT
from gateway.declarations import TODAY
from gateway.exchange import TO_SEND_S, Exchange
from gateway.head import Heads, complete
from gateway.line import read_plain
from gateway.lookup import MIN_AS_OF, Lookup, matches
from gateway.middleware.observe import CLIENT_CLOSED, correlation_id_of, deadline_of, observed
from gateway.middleware.refuse import refusal
from gateway.recent import Recent
from gateway.serving import BUCKETS, CORRELATION, IN_FLIGHT, LOOKUPS, ROUTE_OF

log = structlog.get_logger("gateway.edge")

Tell = Callable[[bytes | None], None]

_PREFIX = "/v1/lookups/"
_TARGETS = 25_000
_TARGET_BYTES = 32 << 20
_WATCHED = 256
_BLOCKS = 1_000
_BLOCK_BYTES = 1 << 20
# What a target takes beside its own text, measured and rounded up.
_OBJECTS = 700


class Asked:
    """A lookup that may be asked the short way, with what its answers have in common."""

    __slots__ = ("group", "heads", "is_lasting", "lookup")

    def __init__(self, lookup: Lookup, group: Group) -> None:
        self.lookup = lookup
        self.group = group
        self.heads = Heads(lookup)
        # A question whose default is the day it is asked on is another one tomorrow.
        self.is_lasting = all(one.default != TODAY for one in lookup.declaration.parameters.values())


class InHand:
    """A request that waits for Redis or for the silo. `tell` is called once, with its answer's bytes or None: then
    `finish` it.
    """

    __slots__ = (
        *("_asked", "_caller", "_direct", "_etags", "_looked"),
        *("_question", "_started", "_tell", "exchange", "is_told"),
    )

    def __init__(
        self, direct: Direct, target: tuple[Asked, Question], exchange: Exchange, etags: str | None, tell: Tell
    ) -> None:
        self._direct = direct
        self._asked, self._question = target
        self._etags = etags
        self._tell = tell
        self._started = time.perf_counter()
        self._looked: Looked | None = None
        self._caller: Caller | None = None
        self.exchange = exchange
        self.is_told = False

    def told(self, reading: Reading | None) -> None:
        """Redis has answered, or is no help."""
        if self.is_told or self._looked is not None:
            return
        group = self._asked.group
        wire: bytes | None = None
        try:
            self._looked = looked = group.weigh(self._question, reading, self._started)
            wire = self._settled(looked)
            if wire is None:
                self._caller = group.begin_load(looked, self._loaded)
                if self._caller is not None:
                    return
        # Redis's reply is for many requests: a fault of one must not cost the others theirs. It goes the long way.
        except Exception:
            log.exception("request_failed", code="internal_error")
        self._end(wire)

    def _loaded(self, outcome: Loaded | Exception) -> None:
        """The silo has answered, or cannot."""
        if self.is_told or self._looked is None:
            return
        self._looked.loaded = outcome
        wire: bytes | None = None
        try:
            wire = self._settled(self._looked)
        # As above: so is the silo's.
        except Exception:
            log.exception("request_failed", code="internal_error")
        self._end(wire)

    def late(self) -> None:
        """It was not answered in time: the long way refuses it, or has something to fall back on."""
        if self.is_told:
            return
        if self._caller is not None:
            self._caller.leave()
        self._end(None)

    def _settled(self, looked: Looked) -> bytes | None:
        answer = self._asked.group.settle(looked)
        return None if answer is None else self._direct.answered(self._asked, answer, self.exchange, self._etags)

    def _end(self, wire: bytes | None) -> None:
        self.is_told = True
        if wire is not None:
            # what was found may be large, and this is looked at again when its deadline passes
            self._looked = self._caller = None
        self._tell(wire)

    async def finish(self) -> web.Response:
        """The answer where it takes more than a look into Redis; a refusal is an answer too."""
        structlog.contextvars.bind_contextvars(correlation_id=self.exchange.correlation_id)
        status = CLIENT_CLOSED
        try:
            response = await self._response()
            status = response.status
            return response
        finally:
            self.drop(status)

    def drop(self, status: int = CLIENT_CLOSED) -> None:
        """The request is over, or nobody is left to answer."""
        self._direct.close(self.exchange, status)

    async def _response(self) -> web.Response:
        exchange = self.exchange
        try:
            async with asyncio.timeout_at(exchange.deadline):
                looked = self._looked or Looked(self._question, self._started)
                answer = await self._asked.group.resume(looked, timeout_s=time_left(exchange))
            response = answered(self._asked.lookup, answer, self._etags)
        # As in the middleware `refuse`: nothing goes out that is not one of our documents.
        except Exception as error:  # noqa: BLE001
            response = refusal(error, self._direct.metrics, exchange.correlation_id)
        return complete(response, exchange.correlation_id)


class Direct:
    """Answers what it can of what arrives on a connection. One for the public application of a process."""

    def __init__(self, app: web.Application) -> None:
        context = app[CONTEXT]
        self.metrics = context.metrics
        self._in_flight = app[IN_FLIGHT]
        self._buckets = app[BUCKETS]
        self._keys = context.keys
        self._route = app[ROUTE_OF][get_lookup]
        self._gate = self._in_flight.gate_of(self._route.rate_class)
        self._timeout_s = deadline_of(context, self._route, 0.0) or 0.0
        self._asked = {
            name: Asked(lookup, group)
            for name, lookup in app[LOOKUPS].items()
            if isinstance(group := context.groups[name], Group) and not lookup.personal
        }
        # By the line of the request that asks for it, and by the lines of headers that followed one.
        self._targets: Recent[bytes, tuple[Asked, Question]] = Recent(_TARGETS, _TARGET_BYTES)
        self._blocks: Recent[bytes, str] = Recent(_BLOCKS, _BLOCK_BYTES)
        self._blocks_of = self._keys.taken
        self._waiting: deque[InHand] = deque()
        self._most_watched = _WATCHED
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, message: RawRequestMessage, tell: Tell) -> InHand | bytes | None:
        """The bytes of the answer; or what stands for it until `tell` is called; or None: then nothing has begun.

        The request must be without a body.
        """
        headers = message.headers
        if (
            message.method != "GET"
            or message.version != HttpVersion11
            or message.should_close
            or message.upgrade
            or message.chunked
            or hdrs.EXPECT in headers
            or MIN_AS_OF in headers
        ):
            return None
        line = _line(message)
        target = self._targets.get(line) or self._read_target(message, line)
        if target is None:
            return None
        key, etags = headers.get(hdrs.AUTHORIZATION), headers.get(hdrs.IF_NONE_MATCH)
        return self._begin(target, key, headers.get(CORRELATION), etags, tell)

    def again(self, data: bytes, tell: Tell) -> InHand | bytes | None:
        """The same for a whole request whose headers were read before; None if they were not, too.

        So nothing is read here that aiohttp might have refused or read otherwise: the block of headers with its end is
        one of the very bytes that aiohttp has read; the line before it is too, or it is a plain one (`gateway.line`).
        Between the two nothing depends on the other.
        """
        end = data.find(b"\n") + 1
        if self._blocks_of != self._keys.taken:
            # they hold keys, of which one may be revoked
            self._blocks.clear()
            self._blocks_of = self._keys.taken
        key = self._blocks.get(data[end:])
        if key is None:
            return None
        line = data[:end]
        target = self._targets.get(line) or self._plain_target(line)
        return None if target is None else self._begin(target, key, None, None, tell)

    def learn(self, data: bytes, message: RawRequestMessage) -> None:
        """Remember the headers of a request that was answered here. `data` is that request and nothing else."""
        headers = message.headers
        key = headers.get(hdrs.AUTHORIZATION)
        # These two would be other ones the next time.
        if key is not None and CORRELATION not in headers and hdrs.IF_NONE_MATCH not in headers:
            block = data[data.find(b"\n") + 1 :]
            self._blocks.put(block, key, _OBJECTS + len(block))

    def _begin(
        self, target: tuple[Asked, Question], key: str | None, correlation_id: str | None, etags: str | None, tell: Tell
    ) -> InHand | bytes | None:
        if self._gate.is_full:
            return None
        asked, question = target
        principal = self._principal(key)
        if principal is None or not principal.may_ask(asked.lookup.scope, personal=False):
            return None
        # Last, because it takes a token: everything else would let the request pass.
        if self._buckets.take(principal.id, asked.lookup.rate):
            return None
        started = asyncio.get_running_loop().time()
        exchange = Exchange(
            correlation_id_of(correlation_id), started, self._route, started + self._timeout_s, principal
        )
        self._gate.inside += 1
        try:
            answer = asked.group.at_hand(question)
            if answer is not None:
                return self.answered(asked, answer, exchange, etags)
        # It stands in for the handler of `refuse` here: the long way meets the fault again, and answers it.
        except Exception:
            log.exception("request_failed", code="internal_error")
            self._gate.inside -= 1
            return None
        in_hand = InHand(self, target, exchange, etags, tell)
        self._watch(in_hand)
        if not asked.group.begin(question, in_hand.told):
            asyncio.get_running_loop().call_soon(in_hand.told, None)
        return in_hand

    def answered(self, asked: Asked, answer: Answer, exchange: Exchange, etags: str | None) -> bytes:
        """The bytes of an answer, after which the request is over."""
        is_held = etags is not None and matches(etags, answer.etag)
        wire = asked.heads.response(answer, exchange.correlation_id, is_held=is_held)
        self.close(exchange, 304 if is_held else 200)
        return wire

    def close(self, exchange: Exchange, status: int) -> None:
        """Count a request that was begun, and let the next one in."""
        self._gate.inside -= 1
        observed(self.metrics, self._in_flight, exchange, "GET", status)

    def _principal(self, header: str | None) -> Principal | None:
        try:
            return self._keys.known(header)
        except Unauthenticated:
            return None

    def _read_target(self, message: RawRequestMessage, line: bytes) -> tuple[Asked, Question] | None:
        """What the address asks; None for every address that is not plainly a well-formed question."""
        name, _, query = message.path.removeprefix(_PREFIX).partition("?")
        if not message.path.startswith(_PREFIX) or "#" in query:
            return None
        return self._target(name, line, lambda lookup: lookup.parameters_of_query(message.url.query))

    def _plain_target(self, line: bytes) -> tuple[Asked, Question] | None:
        """The same for a line that aiohttp has not read."""
        plain = read_plain(line)
        if plain is None:
            return None
        name, given = plain
        return self._target(name, line, lambda lookup: lookup.parameters_of(given))

    def _target(
        self, name: str, line: bytes, parameters: Callable[[Lookup], Mapping[str, object]]
    ) -> tuple[Asked, Question] | None:
        asked = self._asked.get(name)
        if asked is None:
            return None
        try:
            question = asked.group.question(parameters(asked.lookup))
        # The long way refuses it, and says why; it meets what is no refusal again too.
        except Exception:  # noqa: BLE001
            return None
        target = asked, question
        if asked.is_lasting:
            self._targets.put(line, target, _OBJECTS + 2 * len(line) + 100 * len(question.tags))
        return target

    # A request that waits for too long is taken out of its batch at its deadline: one timer does for all.

    def _watch(self, in_hand: InHand) -> None:
        waiting = self._waiting
        while waiting and waiting[0].is_told:
            waiting.popleft()
        if len(waiting) >= self._most_watched:
            # one that waits long keeps those behind it, which are over
            self._waiting = waiting = deque([one for one in waiting if not one.is_told])
            self._most_watched = 2 * len(waiting) + _WATCHED
        waiting.append(in_hand)
        if self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        deadline = self._waiting[0].exchange.deadline or 0.0
        self._timer = asyncio.get_running_loop().call_at(deadline - TO_SEND_S, self._look_for_late)

    def _look_for_late(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time() + TO_SEND_S
        while self._waiting and (self._waiting[0].is_told or (self._waiting[0].exchange.deadline or 0.0) <= now):
            self._waiting.popleft().late()
        if self._waiting:
            self._set_timer()


def _line(message: RawRequestMessage) -> bytes:
    """The plain way to write the first line of a GET; one that is written otherwise is not among what is remembered."""
    return b"GET %b HTTP/1.1\r\n" % message.path.encode("utf-8", "surrogateescape")


DIRECT = web.AppKey("direct", Direct)
