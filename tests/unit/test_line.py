"""A plain line is read as aiohttp and yarl read it, and what they might read otherwise is none."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http_parser import HttpRequestParserPy
from hypothesis import given
from hypothesis import strategies as st

from gateway.line import read_plain

_WORDS = st.one_of(
    st.text(alphabet="ab_9", max_size=8),
    st.text(alphabet="abXY09._~-+", max_size=12),
    st.text(alphabet="abcXYZ019._~-+ %&=#?/;\\é\t", max_size=12),
)


class _Protocol:
    """What the parser asks of a connection."""

    _reading_paused = False


def as_aiohttp(line: bytes) -> tuple[str, dict[str, object]]:
    """The path's last part and the query of a line, by the parsers themselves."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParserPy(_Protocol(), loop, 2**16)  # type: ignore[arg-type]
        messages, _, _ = parser.feed_data(line + b"Host: a\r\n\r\n")
        url = messages[0][0].url
    finally:
        loop.close()
    assert len(url.query) == len(set(url.query))
    return url.path.removeprefix("/v1/lookups/"), dict(url.query)


def test_a_plain_line_is_read() -> None:
    """Both ways to write a space, an empty value, several names."""
    line = b"GET /v1/lookups/addresses-of-postcode?postcode=BN15%209JB&house_name=The+Elms&flat= HTTP/1.1\r\n"
    assert read_plain(line) == (
        "addresses-of-postcode",
        {"postcode": "BN15 9JB", "house_name": "The Elms", "flat": ""},
    )
    assert as_aiohttp(line) == read_plain(line)


@given(st.text(alphabet="abz-9", min_size=1, max_size=8), st.lists(st.tuples(_WORDS, _WORDS), max_size=3))
def test_what_is_read_is_what_the_parsers_read(name: str, pairs: list[tuple[str, str]]) -> None:
    """Whatever stands in the line: it is left to the parsers, or means what it means to them."""
    query = "&".join(f"{key}={value}" for key, value in pairs)
    line = f"GET /v1/lookups/{name}?{query} HTTP/1.1\r\n".encode()
    plain = read_plain(line)
    assert plain is None or plain == as_aiohttp(line)


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/lookups/a?b=1&b=2 HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=%31 HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=1#c HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=1;c=2 HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b HTTP/1.1\r\n",
        b"GET /v1/lookups/a? HTTP/1.1\r\n",
        b"GET /v1/lookups/a HTTP/1.1\r\n",
        b"GET /v1/lookups/../a?b=1 HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=1 HTTP/1.0\r\n",
        b"GET /v1/lookups/a?b=1 HTTP/1.1\n",
        b"GET  /v1/lookups/a?b=1 HTTP/1.1\r\n",
        b"POST /v1/lookups/a?b=1 HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=\xc3\xa9 HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=" + b"1" * 600 + b" HTTP/1.1\r\n",
        b"GET /v1/lookups/a?b=1 HTTP/1.1\r\nX: y\r\n",
    ],
)
def test_what_is_not_plain_is_left_to_the_parsers(line: bytes) -> None:
    """Each of these may be read in more than one way, or is refused with a reason that only they know."""
    assert read_plain(line) is None
