"""The first line of a request for a lookup where nothing in it could be read in two ways.

An HTTP parser and a URL parser are made for everything that may come; between them they take longer than a question
takes to answer. Nearly all questions are asked in lines as plain as this, and everything else is left to the parsers.
"""

from __future__ import annotations

import re

_LONGEST = 512
# RFC 3986 unreserved characters, and the two ways to write a space; so no escape is left that could hide anything.
_VALUE = rb"(?:[A-Za-z0-9._~-]|%20|\+)*"
_PAIR = rb"[a-z][a-z0-9_]*=" + _VALUE
_PLAIN = re.compile(rb"GET /v1/lookups/([a-z][a-z0-9-]*)\?(" + _PAIR + rb"(?:&" + _PAIR + rb")*) HTTP/1\.1\r\n")


def read_plain(line: bytes) -> tuple[str, dict[str, object]] | None:
    """The name of the lookup and what is asked, or None for a line that is not plain, or gives a name twice."""
    if len(line) > _LONGEST or (match := _PLAIN.fullmatch(line)) is None:
        return None
    name, query = match.groups()
    pairs = query.replace(b"%20", b" ").replace(b"+", b" ").decode("ascii").split("&")
    given: dict[str, object] = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    return (name.decode("ascii"), given) if len(given) == len(pairs) else None
