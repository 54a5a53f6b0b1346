"""Asking several lookups in one request: together, under one deadline, each with its own answer or its own refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from aiohttp import web

from cache.answer import Answer, AsOf
from gateway.api.lookups import JSON, time_left
from gateway.audit import AuditUnavailable
from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE, Exchange
from gateway.limits import rate_limited, read_object, shown_name
from gateway.lookup import Lookup
from gateway.problems import IN_DOUBT, Problem, as_problem
from gateway.serving import BUCKETS, LOOKUPS
from streams.cases.casetype import pointer

MOST_LOOKUPS = 20
_LONGEST_AGE_S = 2**31 - 1
_FIELDS = frozenset({"lookup", "parameters", "min_as_of"})
# Ends a lookup that has not kept to the time it was given.
_GRACE_S = 0.02
# The part of a personal question's time that is kept back for its audit row: without the row there is no answer, and
# one that came at the deadline would take the answers of all the others with it.
_FOR_AUDIT = 0.25

log = structlog.get_logger("gateway.edge")


@dataclass(frozen=True, slots=True)
class _Item:
    """One question of the request; `at` is its JSON pointer."""

    at: tuple[str | int, ...]
    name: str
    parameters: Mapping[str, object]
    min_as_of: tuple[str, ...]

    def pointer(self, *below: str) -> str:
        return pointer((*self.at, *below))


async def post_lookup_batch(request: web.Request) -> web.Response:
    """Answers up to MOST_LOOKUPS questions at once; the order of the answers is that of the questions.

    A question that is refused or fails takes nothing from the others: the request is 200 whenever it could be read.
    """
    items = _items(await read_object(request, request.app[CONTEXT].settings.json_body_cap, (JSON,)))
    # One turn of the event loop: what these ask of Redis and of each silo goes in one round trip each.
    answers = await asyncio.gather(*(_answer(request, item) for item in items))
    return web.Response(body=b'{"answers":[' + b",".join(answers) + b"]}", content_type=JSON)


# One question


async def _answer(request: web.Request, item: _Item) -> bytes:
    """The answer or the refusal as JSON."""
    lookup = request.app[LOOKUPS].get(item.name)
    if lookup is None:
        unknown = Problem("unknown_lookup", "There is no lookup of this name.", field=item.pointer("lookup"))
        return _refused(request, unknown)
    # Before anything that leaves a row, as for a single question: the rate also bounds what a key, even one that may
    # ask nothing, writes into the audit log.
    wait = _wait(request, lookup)
    return _refused(request, rate_limited(wait)) if wait else await _asked(request, lookup, item)


def _wait(request: web.Request, lookup: Lookup) -> float:
    """Takes the key's token for one question: 0.0 when there was one, else the seconds until the next."""
    principal = request[EXCHANGE].principal
    wait = 0.0 if principal is None else request.app[BUCKETS].take(principal.id, lookup.rate)
    if wait:
        request.app[CONTEXT].metrics.rate_limited.labels(lookup.rate).inc()
    return wait


async def _asked(request: web.Request, lookup: Lookup, item: _Item) -> bytes:
    """The answer or the refusal as JSON. A personal question leaves one audit row, whatever becomes of it."""
    subject = "-"
    try:
        parameters = _permitted(request, lookup, item)
        subject = lookup.subject_of(parameters) if lookup.personal else subject
        answer = await _ask(request, lookup, item, parameters)
        outcome: str = answer.verdict
        shown = _shown(lookup, answer)
    except asyncio.CancelledError:
        # The request is cut off, by its own deadline or as the process ends: the silo may have been asked, but there
        # is no time left to wait for the row.
        if lookup.personal:
            request.app[CONTEXT].audit.note(**_row(request[EXCHANGE], lookup, subject, "cancelled"))
        raise
    # Whatever goes wrong with one question is that question's answer.
    except Exception as error:
        problem = as_problem(error)
        if problem.code == "internal_error":
            log.exception("request_failed", code=problem.code, lookup=item.name)
        elif problem.status >= 500:
            # Without its traceback: to render one takes long, and this request has others to answer.
            log.warning("request_failed", code=problem.code, lookup=item.name, error=type(error).__name__)
        outcome, shown = problem.code, _refused(request, problem)
    if lookup.personal:
        try:
            await _record(request, _row(request[EXCHANGE], lookup, subject, outcome))
        except AuditUnavailable:
            detail = f"The audit log cannot be written. {IN_DOUBT}"
            return _refused(request, Problem("audit_unavailable", detail, field=item.pointer()))
    return shown


def _permitted(request: web.Request, lookup: Lookup, item: _Item) -> dict[str, Any]:
    """The normalised parameters; raises Problem for a key that may not ask before any of them is read."""
    principal = request[EXCHANGE].principal
    if principal is None or not principal.may_ask(lookup.scope, personal=lookup.personal):
        raise Problem("forbidden", f"The key lacks the scope {lookup.scope}.", field=item.pointer("lookup"))
    try:
        return lookup.parameters_of(item.parameters)
    except Problem as problem:
        problem.field = item.pointer("parameters", *(() if problem.field is None else (problem.field,)))
        raise


async def _ask(request: web.Request, lookup: Lookup, item: _Item, parameters: dict[str, Any]) -> Answer:
    min_as_of = _min_as_of(lookup, item)
    timeout_s = time_left(request[EXCHANGE]) * (1 - _FOR_AUDIT if lookup.personal else 1)
    async with asyncio.timeout(timeout_s + _GRACE_S):
        return await lookup.ask(parameters, timeout_s=timeout_s, min_as_of=min_as_of)


def _min_as_of(lookup: Lookup, item: _Item) -> AsOf | None:
    """The token of the lookup's own silo; a client may send those of other silos along."""
    silo = lookup.declaration.definition.silo
    try:
        own = [found for found in map(AsOf.parse, item.min_as_of) if found.silo == silo]
    except ValueError:
        own = []
    if len(own) > 1 or (item.min_as_of and not own):
        detail = f"It holds no token, or more than one, of an earlier answer of the silo {silo}."
        raise Problem("malformed_as_of", detail, field=item.pointer("min_as_of"))
    return own[0] if own else None


async def _record(request: web.Request, row: dict[str, Any]) -> None:
    """Commits the row; raises AuditUnavailable when that is not done while the others can still be answered.

    A row that comes too late for its question is written all the same, and once: see `Audit.record`.
    """
    try:
        async with asyncio.timeout(time_left(request[EXCHANGE])):
            await request.app[CONTEXT].audit.record(**row)
    except TimeoutError:
        raise AuditUnavailable("the row was not committed before the request's deadline") from None


def _row(exchange: Exchange, lookup: Lookup, subject: str, outcome: str) -> dict[str, Any]:
    return {
        "actor": exchange.actor,
        "action": f"lookup.{lookup.name}",
        "subject": subject,
        "outcome": outcome,
        "correlation_id": exchange.correlation_id,
        "detail": {},
    }


def _shown(lookup: Lookup, answer: Answer) -> bytes:
    """What the headers of a single answer say, and its body around the stored result bytes, which are not parsed."""
    opening = orjson.dumps(
        {
            "status": 200,
            "age": int(min(max(answer.age_s, 0.0), _LONGEST_AGE_S)),
            "staleness_bound_ms": answer.staleness_bound_ms,
        }
    )
    return opening[:-1] + b',"answer":' + lookup.body(answer) + b"}"


def _refused(request: web.Request, problem: Problem) -> bytes:
    code = "malformed_parameter" if problem.code.startswith("malformed_") else problem.code
    request.app[CONTEXT].metrics.problems.labels(code).inc()
    document = problem.body(request[EXCHANGE].correlation_id)
    return b'{"status":' + str(problem.status).encode() + b',"problem":' + document + b"}"


# The request


def _items(document: Mapping[str, object]) -> list[_Item]:
    """The questions; raises Problem naming the place for a body that is no list of them."""
    for name in document:
        if name != "lookups":
            raise _invalid("It has only the field lookups.", *_shown_names(name))
    given = document.get("lookups")
    if not isinstance(given, list) or not 0 < len(given) <= MOST_LOOKUPS:
        raise _invalid(f"It is a list of one to {MOST_LOOKUPS} questions.", "lookups")
    return [_item(("lookups", place), one) for place, one in enumerate(given)]


def _item(at: tuple[str | int, ...], given: object) -> _Item:
    if not isinstance(given, dict):
        raise _invalid("A question is an object.", *at)
    for name in given:
        if name not in _FIELDS:
            raise _invalid("A question has only lookup, parameters and min_as_of.", *at, *_shown_names(name))
    name, parameters, tokens = given.get("lookup"), given.get("parameters", {}), given.get("min_as_of", [])
    if not isinstance(name, str):
        raise _invalid("It is the name of a lookup.", *at, "lookup")
    if not isinstance(parameters, dict):
        raise _invalid("It is an object of the lookup's parameters.", *at, "parameters")
    tokens = [tokens] if isinstance(tokens, str) else tokens
    if not isinstance(tokens, list) or len(tokens) > MOST_LOOKUPS or not all(isinstance(one, str) for one in tokens):
        raise _invalid("It is a token of an earlier answer, or a list of them, one a silo.", *at, "min_as_of")
    return _Item(at, name, parameters, tuple(tokens))


def _shown_names(name: str) -> tuple[str, ...]:
    # what somebody else named a field may be anything, a person's name included
    return () if shown_name(name) is None else (name,)


def _invalid(detail: str, *at: str | int) -> Problem:
    return Problem("invalid_document", detail, field=pointer(at))
