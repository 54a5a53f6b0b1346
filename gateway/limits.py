"""What one key, one request and one process may take: rate classes, body caps, JSON depth, requests in flight.

The token buckets live in this process: with several gateway processes a key gets its rate once per process. Buckets
shared through Redis come with a later release; until then divide the rates by the number of processes.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import uuid4

import orjson
import prometheus_client
from aiohttp import hdrs, web

from gateway.problems import Problem

MAX_DEPTH = 32
# The JSON pointer of the whole document.
_BODY = ""
_MAX_BUCKETS = 10_000
_SHOWN_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


@dataclass(frozen=True, slots=True)
class RateClass:
    """A steady rate, and how much may come at once."""

    per_second: float
    burst: float


DEFAULT_RATES: dict[str, RateClass] = {
    "lookup": RateClass(per_second=5000, burst=10_000),
    # for a lookup by which somebody could find out what there is, one value after the other
    "strict": RateClass(per_second=10, burst=30),
    "read": RateClass(per_second=200, burst=400),
    "write": RateClass(per_second=100, burst=200),
    "upload": RateClass(per_second=20, burst=40),
    "stream": RateClass(per_second=50, burst=500),
}


class Buckets:
    """One token bucket per key and rate class. At most _MAX_BUCKETS are kept; the one idle longest goes first."""

    def __init__(self, rates: Mapping[str, RateClass], clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._levels: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, key_id: str, rate_class: str) -> float:
        """Takes one token: 0.0 when there was one, else the seconds until the next."""
        rate = self._rates[rate_class]
        now = self._clock()
        bucket = (key_id, rate_class)
        level, at = self._levels.pop(bucket, (rate.burst, now))
        level = min(rate.burst, level + (now - at) * rate.per_second)
        wait = 0.0 if level >= 1 else (1 - level) / rate.per_second
        self._levels[bucket] = (level - 1 if level >= 1 else level, now)
        if len(self._levels) > _MAX_BUCKETS:
            self._levels.popitem(last=False)
        return wait


class Gate:
    """Counts what is in flight and refuses what would be too much, at once and cheaply."""

    def __init__(
        self, limit: int, reason: str, shed: prometheus_client.Counter, gauge: prometheus_client.Gauge | None = None
    ) -> None:
        self._limit = limit
        self._shed = shed.labels(reason)
        self.inside = 0
        if gauge is not None:
            # read when scraped: nothing is spent on it while requests come
            gauge.set_function(lambda: self.inside)

    @property
    def is_full(self) -> bool:
        """Whether `pass_through` would refuse now."""
        return self.inside >= self._limit

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        """Raises Problem `overloaded` when the limit is reached."""
        if self.is_full:
            self._shed.inc()
            raise Problem("overloaded", "Too many requests at once. Try again shortly.", headers={"Retry-After": "1"})
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


def rate_limited(wait_s: float) -> Problem:
    """The refusal of a request for which there was no token."""
    seconds = str(max(1, math.ceil(wait_s)))
    return Problem("rate_limited", "This key has used up its rate. Try again later.", headers={"Retry-After": seconds})


async def read_body(request: web.Request, cap: int) -> bytearray:
    """The request's body. One over the cap is refused before the rest of it is read, if declared before any of it."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem("unsupported_media_type", "Send the body without Content-Encoding.", field="Content-Encoding")
    if (request.content_length or 0) > cap:
        _too_large(cap)
    await _let_it_come(request)
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > cap:
            _too_large(cap)
    return body


async def defer_continue(request: web.Request) -> web.Response | None:
    """Leaves an `Expect: 100-continue` unanswered until the body is wanted: a refused upload is never sent."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        return None
    # asked before any middleware runs, so the refusal is made here
    problem = Problem("expectation_failed", "Only 100-continue is understood.", field=hdrs.EXPECT)
    return problem.response(str(uuid4()))


async def read_object(request: web.Request, cap: int, media_types: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object in the body; raises Problem for anything else."""
    if request.content_type not in media_types:
        raise Problem(
            "unsupported_media_type",
            f"Send {' or '.join(media_types)}.",
            field="Content-Type",
            headers=_accept(request),
        )
    return parse_object(bytes(await read_body(request, cap)))


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: one object, no field twice, at most MAX_DEPTH deep, nothing that other readers take otherwise."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg:
            _too_deep()
        # the message of the parser says where, never what
        where = f"The body is not JSON: line {error.lineno}, column {error.colno}."
        raise Problem("malformed_json", where, field=_BODY) from None
    if not isinstance(value, dict):
        raise Problem("not_an_object", "The body must be a JSON object.", field=_BODY)
    if _is_deeper_than(value, MAX_DEPTH):
        _too_deep()
    # orjson keeps the last of two equal keys without a word; the standard parser shows them all
    json.loads(body, object_pairs_hook=_refuse_doubles)
    return value


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        double = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Problem("duplicate_key", "A field is named twice in one object.", field=shown_name(double))
    return made


def shown_name(name: str) -> str | None:
    """A name from outside as an answer may repeat it; None when it could be anything, a person's name included."""
    return name if 0 < len(name) <= 64 and _SHOWN_NAME.issuperset(name) else None


def _is_deeper_than(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        below: list[object] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
        level = below
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


async def _let_it_come(request: web.Request) -> None:
    if hdrs.EXPECT in request.headers and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # what was written so far is not part of the answer
        request.writer.output_size = 0


def _accept(request: web.Request) -> dict[str, str]:
    return {"Accept-Patch": "application/merge-patch+json"} if request.method == "PATCH" else {}


def _too_large(cap: int) -> NoReturn:
    detail = f"The body may have at most {cap} bytes."
    raise Problem("body_too_large", detail, field=_BODY, headers={"Connection": "close"})


def _too_deep() -> NoReturn:
    raise Problem("too_deep", f"The body may be nested at most {MAX_DEPTH} levels deep.", field=_BODY)
