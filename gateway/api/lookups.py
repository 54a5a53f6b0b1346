"""Asking: which lookups there are, and one lookup's answer."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import hdrs, web

from cache.answer import Answer
from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE, TO_SEND_S, Exchange
from gateway.limits import read_object
from gateway.lookup import MIN_AS_OF, Lookup, matches
from gateway.problems import Problem
from gateway.serving import LOOKUPS

JSON = "application/json"


async def list_lookups(request: web.Request) -> web.Response:
    """The lookups that this key may ask."""
    principal = request[EXCHANGE].principal
    listed = [
        {
            "name": lookup.name,
            "title": lookup.declaration.title,
            "personal": lookup.personal,
            "method": "POST" if lookup.personal else "GET",
            "parameters": [
                {"name": name, "type": parameter.type.name, "title": parameter.title, "required": parameter.required}
                for name, parameter in lookup.declaration.parameters.items()
            ],
        }
        for lookup in request.app[LOOKUPS].values()
        if principal is not None and principal.may_ask(lookup.scope, personal=lookup.personal)
    ]
    return web.Response(body=orjson.dumps({"lookups": listed}), content_type=JSON)


async def get_lookup(request: web.Request) -> web.Response:
    """Answers a public lookup; a personal one is refused, as its values would stand in an address."""
    lookup = request.app[LOOKUPS][request.match_info["name"]]
    if lookup.personal:
        detail = "Ask by POST with the parameters in the body: personal values never stand in an address."
        raise Problem("personal_lookup", detail, field="name", headers={"Allow": "POST"})
    answer = await _ask(request, lookup, lookup.parameters_of_query(request.query))
    return answered(lookup, answer, request.headers.get(hdrs.IF_NONE_MATCH))


def answered(lookup: Lookup, answer: Answer, if_none_match: str | None) -> web.Response:
    """The response to a GET of a public lookup."""
    headers = lookup.headers(answer)
    headers["ETag"] = answer.etag
    if matches(if_none_match, answer.etag):
        return web.Response(status=304, headers=headers)
    return web.Response(body=lookup.body(answer), headers=headers, content_type=JSON)


async def post_lookup(request: web.Request) -> web.Response:
    """Answers any lookup; the parameters are the fields of the JSON object in the body."""
    lookup = request.app[LOOKUPS][request.match_info["name"]]
    cap = request.app[CONTEXT].settings.json_body_cap
    parameters = lookup.parameters_of(await read_object(request, cap, (JSON,)))
    exchange = request[EXCHANGE]
    if lookup.personal:
        exchange.subject = lookup.subject_of(parameters)
    answer = await _ask(request, lookup, parameters)
    exchange.outcome = answer.verdict
    return web.Response(body=lookup.body(answer), headers=lookup.headers(answer), content_type=JSON)


async def _ask(request: web.Request, lookup: Lookup, parameters: dict[str, object]) -> Answer:
    min_as_of = lookup.min_as_of(request.headers.get(MIN_AS_OF))
    return await lookup.ask(parameters, timeout_s=time_left(request[EXCHANGE]), min_as_of=min_as_of)


def time_left(exchange: Exchange) -> float:
    """How long a lookup may take, in seconds, so that its answer still goes out before the request's deadline."""
    now = asyncio.get_running_loop().time()
    return max(0.001, (exchange.deadline or now) - now - TO_SEND_S)
