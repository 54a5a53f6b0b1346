"""What a lookup's YAML says of keeping its answers: by the cache, by clients, and how often they may be asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from gateway.limits import DEFAULT_RATES
from streams.declared import Location

NO_STORE = "no-store"
# RFC 9111 §5.2.2, RFC 5861 and RFC 8246: the directives of an answer, and whether each takes seconds.
_DIRECTIVES = {
    "max-age": True,
    "s-maxage": True,
    "stale-while-revalidate": True,
    "stale-if-error": True,
    "must-revalidate": False,
    "must-understand": False,
    "no-cache": False,
    NO_STORE: False,
    "no-transform": False,
    "private": False,
    "proxy-revalidate": False,
    "public": False,
    "immutable": False,
}
_DIRECTIVE = re.compile(r"([a-z-]+)(?:=([0-9]{1,10}))?")
# Classes of routes that no question is one of: they hold a connection or a body for long.
_OTHER_RATES = frozenset({"stream", "upload"})
RATES = tuple(sorted(set(DEFAULT_RATES) - _OTHER_RATES))


class Kept(Protocol):
    """The fields of a lookup's YAML that are checked here; durations in seconds."""

    @property
    def personal(self) -> bool: ...
    @property
    def cache_control(self) -> str: ...
    @property
    def rate(self) -> str: ...
    @property
    def ttl(self) -> float: ...
    @property
    def soft_ttl(self) -> float: ...
    @property
    def negative_ttl(self) -> float | None: ...
    @property
    def stale_for(self) -> float: ...
    @property
    def max_age(self) -> float | None: ...


def faults(declared: Kept, *, cached: bool, with_cases: bool) -> Iterator[tuple[Location, str]]:
    """What is wrong, and at which field; a lookup that is not `cached` keeps nothing at all."""
    yield from _client_faults(declared.cache_control, personal=declared.personal, with_cases=with_cases)
    if declared.rate not in RATES:
        yield ("rate",), f"is not a rate class; there are: {', '.join(RATES)}"
    if cached:
        yield from _life_faults(declared)
        return
    for field in ("ttl", "soft_ttl", "negative_ttl", "stale_for", "max_age"):
        if getattr(declared, field):
            yield (field,), "a lookup over cases is never cached, and always of now"


def _life_faults(declared: Kept) -> Iterator[tuple[Location, str]]:
    if not 0 < declared.soft_ttl <= declared.ttl:
        yield ("soft_ttl",), "must be more than 0s and at most ttl"
    if declared.negative_ttl is not None and not 0 < declared.negative_ttl <= declared.ttl:
        yield ("negative_ttl",), "must be more than 0s and at most ttl"
    if declared.max_age is not None and declared.max_age <= 0:
        yield ("max_age",), "must be more than 0s"


def _client_faults(cache_control: str, *, personal: bool, with_cases: bool) -> Iterator[tuple[Location, str]]:
    said: dict[str, str | None] = {}
    for part in cache_control.lower().split(","):
        found = _DIRECTIVE.fullmatch(part.strip())
        if found is None or _DIRECTIVES.get(found[1]) is not (found[2] is not None):
            yield ("cache_control",), "is not a list of directives such as private, max-age=60 or no-store"
            return
        if found[1] in said:
            yield ("cache_control",), f"says {found[1]} twice"
        said[found[1]] = found[2]
    if {"public", "private"} <= said.keys():
        yield ("cache_control",), "cannot be both public and private"
    if "public" in said and NO_STORE in said:
        yield ("cache_control",), "cannot be both public and no-store"
    if personal and NO_STORE not in said:
        yield ("cache_control",), "a personal answer needs no-store"
    if with_cases and NO_STORE not in said:
        yield ("cache_control",), "an answer over cases needs no-store: the next case may be a second away"
