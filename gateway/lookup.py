"""A declared lookup, compiled once: what is asked, by whom, and how its answer looks on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date
from typing import Any

import orjson
from multidict import MultiMapping

from cache import grid
from cache.answer import Answer, AsOf
from cache.normalisers import london_today
from cache.values import Malformed
from gateway.context import Asker
from gateway.declarations import TODAY, LookupDeclaration, ParameterDeclaration
from gateway.limits import shown_name
from gateway.problems import Problem, malformed

AS_OF = "Silogate-As-Of"
MIN_AS_OF = "Silogate-Min-As-Of"
STALENESS = "Silogate-Staleness-Bound-Ms"

# RFC 9211. A stale answer is a hit past its life; a bypass never looked into the cache.
_CACHE_STATUS = {
    "hit": "Silogate; hit",
    "miss": "Silogate; fwd=uri-miss",
    "stale": "Silogate; hit; detail=stale",
    "bypass": "Silogate; fwd=bypass",
}
LONGEST_AGE_S = 2**31 - 1
_PERSONAL_CACHE_CONTROL = "private, no-store"


class Lookup:
    """One question. `digest` is the HMAC under which a personal question appears in the audit log."""

    def __init__(
        self,
        declaration: LookupDeclaration,
        asker: Asker,
        digest: Callable[..., bytes],
        *,
        today: Callable[[], date] = london_today,
    ) -> None:
        self.declaration = declaration
        self.name = declaration.name
        self.personal = declaration.personal
        self.scope = declaration.scope
        self.rate = declaration.rate
        self._today = today
        self._asker = asker
        self._digest = digest
        self._cache_control = _PERSONAL_CACHE_CONTROL if declaration.personal else declaration.cache_control
        self._shown_as_of: tuple[AsOf | None, bytes] = (None, b"")
        self._opening = b'{"lookup":' + orjson.dumps(declaration.name) + b',"verdict":"'

    def parameters_of(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The SQL's parameters, normalised; raises Problem naming the first that is missing, malformed or unknown."""
        declared = self.declaration.parameters
        for name in given:
            if name not in declared:
                raise Problem(
                    "unknown_parameter", "The lookup has no parameter of this name.", field=shown_name(str(name))
                )
        normalised: dict[str, Any] = {}
        for name, parameter in declared.items():
            value = given.get(name)
            if value is None or value == "":
                value = self._default(name, parameter)
            try:
                normalised[name] = None if value is None else parameter.type.normalise(value)
            except Malformed as error:
                raise malformed(error, name) from None
        return self._on_the_grid(normalised) if self.declaration.grid is not None else normalised

    def _default(self, name: str, parameter: ParameterDeclaration) -> object:
        if parameter.required:
            raise Problem("missing_parameter", f"The parameter {name} is required.", field=name)
        if parameter.default == TODAY and parameter.type.name == "date":
            # Asked anew each time: at midnight in London the question becomes another one, with an answer of its own.
            return self._today()
        return parameter.default

    def _on_the_grid(self, normalised: dict[str, Any]) -> dict[str, Any]:
        named = self.declaration.grid
        if named is None:
            return normalised
        try:
            easting, northing = grid.easting_northing(normalised.pop(named.latitude), normalised.pop(named.longitude))
        except Malformed as error:
            raise malformed(error, named.latitude if error.code == "malformed_latitude" else named.longitude) from None
        return {named.easting: easting, named.northing: northing, **normalised}

    def parameters_of_query(self, query: MultiMapping[str]) -> dict[str, Any]:
        """The same from a query string, where a name may be given only once."""
        if len(query) != len(set(query)):
            double = next(name for name in query if len(query.getall(name)) > 1)
            raise Problem("repeated_parameter", "A parameter may be given once.", field=shown_name(double))
        return self.parameters_of(query)

    def subject_of(self, parameters: Mapping[str, Any]) -> str:
        """What stands for a personal question in the audit log: the same question gives the same text."""
        canonical = orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS, default=str)
        return "hmac:" + self._digest(b"audit-subject", self.name.encode(), canonical).hex()

    def min_as_of(self, header: str | None) -> AsOf | None:
        """What `Silogate-Min-As-Of` asks for; raises Problem when it is not a token of this lookup's silo."""
        if header is None:
            return None
        try:
            as_of = AsOf.parse(header)
        except ValueError:
            raise Problem("malformed_as_of", "It is not a token of an earlier answer.", field=MIN_AS_OF) from None
        if as_of.silo != self.declaration.definition.silo:
            raise Problem("malformed_as_of", "The token belongs to another silo.", field=MIN_AS_OF)
        return as_of

    async def ask(self, parameters: Mapping[str, Any], *, timeout_s: float, min_as_of: AsOf | None) -> Answer:
        """The answer; raises SiloUnavailable when nothing could give one in time."""
        return await self._asker.answer(parameters, timeout_s=timeout_s, min_as_of=min_as_of)

    def body(self, answer: Answer) -> bytes:
        """The answer's JSON around the stored result bytes, which are not parsed."""
        return b"".join((self.opening(answer), answer.results, b"}"))

    def opening(self, answer: Answer) -> bytes:
        """What stands before the results: the same for all answers of one verdict between two changes of the silo."""
        if answer.as_of is not self._shown_as_of[0]:
            self._shown_as_of = answer.as_of, _as_of(answer.as_of)
        reason = b"" if answer.reason is None else b',"reason":' + orjson.dumps(answer.reason)
        shown = self._shown_as_of[1]
        return b"".join((self._opening, answer.verdict.encode(), b'"', reason, b',"as_of":', shown, b',"results":'))

    def headers(self, answer: Answer) -> dict[str, str]:
        """The answer's headers but for the ETag, which only a GET of a public lookup has."""
        headers = {
            "Age": str(int(min(max(answer.age_s, 0.0), LONGEST_AGE_S))),
            # a doubt is soon over: no client keeps it
            "Cache-Control": "no-store" if answer.verdict == "cannot_tell" else self._cache_control,
            "Cache-Status": _CACHE_STATUS[answer.source],
            # the same address answers differently by key: a shared cache must not mix them
            "Vary": "Authorization",
            AS_OF: answer.as_of.token,
        }
        if answer.staleness_bound_ms is not None:
            headers[STALENESS] = str(answer.staleness_bound_ms)
        return headers


def _as_of(as_of: AsOf) -> bytes:
    time = as_of.time
    shown = None if time is None else time.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    return orjson.dumps({"token": as_of.token, "time": shown})


def matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110 §13.1.2: true when the client already holds this answer. Weak comparison."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(candidate.strip().removeprefix("W/") == opaque for candidate in if_none_match.split(","))
