"""The bytes of an answer, head and body: made from the response that the handler would give, and kept for the next.

Between two changes of a silo the answers of a lookup differ in a few values only. What they have in common is taken
once from a response made in the ordinary way: there is no second place that says which headers an answer has.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web

from cache.answer import Answer, AsOf
from gateway.api.lookups import answered
from gateway.lookup import LONGEST_AGE_S, STALENESS, Lookup
from gateway.serving import CORRELATION, stamp

_VARY_BY_ANSWER = {
    "Age": b"%d",
    STALENESS: b"%d",
    "ETag": b"%b",
    "Content-Length": b"%d",
    "Date": b"%b",
    CORRELATION: b"%b",
}
# In the order of the values that `Heads.response` fills in.
_ORDER = [*_VARY_BY_ANSWER]
_Made = tuple[AsOf, bytes, bytes]


def complete(response: web.Response, correlation_id: str) -> web.Response:
    """Give a response the headers, in their order, that aiohttp and the application's hook give any other."""
    headers = response.headers
    if response.status != HTTPStatus.NOT_MODIFIED:
        headers["Content-Length"] = str(response.content_length)
    headers["Date"] = formatdate(usegmt=True)
    headers["Server"] = ""
    stamp(headers, correlation_id)
    return response


class Heads:
    """The heads of one lookup's answers."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        # hits and misses are as of moments of their own
        self._made: dict[tuple[str, str, str | None, bool, bool], _Made] = {}
        self._second = 0
        self._date = b""

    def response(self, answer: Answer, correlation_id: str, *, is_held: bool) -> bytes:
        """The whole response: 200, or 304 to a client that `is_held` says has the answer. HTTP/1.1, kept alive."""
        bound = answer.staleness_bound_ms
        key = (answer.verdict, answer.source, answer.reason, is_held, bound is None)
        made = self._made.get(key)
        if made is None or made[0] is not answer.as_of:
            made = self._made[key] = self._make(answer, is_held=is_held)
        _, head, opening = made
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        age = min(int(answer.age_s), LONGEST_AGE_S)
        first = (age, answer.etag.encode()) if bound is None else (age, bound, answer.etag.encode())
        last = (self._date, correlation_id.encode())
        if is_held:
            return head % (first + last)
        length = len(opening) + len(answer.results) + 1
        return b"".join((head % (*first, length, *last), opening, answer.results, b"}"))

    def _make(self, answer: Answer, *, is_held: bool) -> _Made:
        headers = complete(answered(self._lookup, answer, "*" if is_held else None), "").headers
        status = HTTPStatus.NOT_MODIFIED if is_held else HTTPStatus.OK
        lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
        for name, value in headers.items():
            shown = _VARY_BY_ANSWER.get(name, value.encode().replace(b"%", b"%%"))
            if b"\r" in shown or b"\n" in shown:
                raise ValueError("a header of the answer holds a line break")
            lines.append(name.encode() + b": " + shown)
        varying = [name for name in headers if name in _VARY_BY_ANSWER]
        absent = {"Content-Length"} if is_held else set()
        if answer.staleness_bound_ms is None:
            absent.add(STALENESS)
        if varying != [name for name in _ORDER if name not in absent]:
            raise ValueError("the headers of an answer are not those that are filled in")
        return answer.as_of, b"\r\n".join(lines) + b"\r\n\r\n", self._lookup.opening(answer)
