"""Every route has a policy, keeps it, and is described: the walk that a new route without one fails."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from gateway.dev.addresses import Servers
from gateway.limits import DEFAULT_RATES
from gateway.openapi import document
from gateway.problems import CODES
from gateway.route import Policy, Route
from gateway.routes import ADMIN_ROUTES, ROUTES
from gateway.serving import ROUTE_OF
from tests.integration.edge import LOOKUPS, Edge, gateway_schema, problem_of, running_edge

_EVERY = (*ROUTES, *ADMIN_ROUTES)
_IDS = [f"{route.method} {route.path}" for route in ROUTES]
_OPEN_ON_THE_ADMIN_PORT = {"/livez", "/readyz", "/startupz", "/metrics", "/openapi.json", "/docs"}


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


def _path(route: Route) -> str:
    path = route.path.replace("{name}", "addresses-by-postcode")
    return re.sub(r"\{\w+\}", str(uuid4()), path)


def test_the_public_application_serves_the_table_and_nothing_else(edge: Edge) -> None:
    """A route added beside the table, without a policy, is found here."""
    assert edge.public.server is not None
    app = edge.public.app
    assert isinstance(app, web.Application)
    served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    assert served == {(route.method, route.path) for route in ROUTES}
    assert set(app[ROUTE_OF].values()) == set(ROUTES)


@pytest.mark.parametrize("route", _EVERY, ids=lambda route: route.operation_id)
def test_a_route_says_who_may_call_it_how_often_and_what_it_is(route: Route) -> None:
    """Policy, rate class, operation id, tag, summary, and known problem codes."""
    assert isinstance(route.policy, Policy)
    assert route.policy.kind in ("lookup", "scope") or route.policy.reason
    assert route.rate_class in (*DEFAULT_RATES, "admin")
    assert re.fullmatch(r"[a-z][A-Za-z]+", route.operation_id)
    assert route.tag
    assert route.summary
    assert set(route.problems) <= set(CODES)


def test_only_the_admin_port_has_open_routes() -> None:
    """Every public route needs a key; what is open is open for a reason, on the admin port."""
    assert {route.path for route in _EVERY if route.policy.kind == "open"} == _OPEN_ON_THE_ADMIN_PORT
    assert not {route.path for route in ROUTES} & _OPEN_ON_THE_ADMIN_PORT


def test_names_and_handlers_are_used_once() -> None:
    """Two routes with one handler would share one policy."""
    for values in (
        [route.operation_id for route in _EVERY],
        [route.handler for route in _EVERY],
        [(route.method, route.path) for route in _EVERY],
    ):
        assert len(values) == len(set(values))


def test_every_route_about_a_person_leaves_an_audit_row() -> None:
    """Case routes name their action; lookups are audited when they are personal."""
    assert all(route.audit for route in ROUTES if route.path.startswith("/v1/cases"))
    assert len({route.audit for route in ROUTES if route.audit}) == sum(1 for route in ROUTES if route.audit)


def test_every_route_and_lookup_is_in_the_description() -> None:
    """operationId, tag, security, refusals and an example for each."""
    described: dict[str, Any] = document(LOOKUPS, {})["paths"]
    for route in _EVERY:
        operation = described[route.path][route.method.lower()]
        assert operation["operationId"] == route.operation_id
        assert operation["tags"] == [route.tag]
        assert operation["security"] == ([] if route.policy.kind == "open" else [{"apiKey": []}])
        assert any(
            "application/problem+json" in answer.get("content", {}) for answer in operation["responses"].values()
        )
    for lookup in LOOKUPS.values():
        assert f"/v1/lookups/{lookup.name}" in described


def test_no_personal_value_has_a_place_in_an_address() -> None:
    """No path or query parameter belongs to a personal lookup, and the path's own are ids and names."""
    described = document(LOOKUPS, {})["paths"]
    personal = {name for lookup in LOOKUPS.values() if lookup.personal for name in lookup.parameters}
    for path, methods in described.items():
        for method, operation in methods.items():
            if method != "servers":
                named = {item["name"] for item in operation["parameters"] if item["in"] in ("path", "query")}
                assert not named & personal, path
    for lookup in LOOKUPS.values():
        assert set(described[f"/v1/lookups/{lookup.name}"]) == ({"post"} if lookup.personal else {"get"})


@pytest.mark.parametrize("route", ROUTES, ids=_IDS)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Basic dXNlcjpwYXNz",
        "Bearer sg_000000000000_" + "A" * 43,
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Bearer sg_000000000000_" + "A" * 43 + ", Bearer x",
    ],
)
async def test_without_a_valid_key_nothing_is_reached(edge: Edge, route: Route, header: str | None) -> None:
    """401 with the challenge, whatever stands in the header."""
    headers = {} if header is None else {"Authorization": header}
    answer = await edge.public.request(route.method, _path(route), headers=headers)
    assert await problem_of(answer) == (401, "unauthenticated", "Authorization")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="silogate"'


@pytest.mark.parametrize("route", ROUTES, ids=_IDS)
async def test_a_key_without_the_scope_is_refused(edge: Edge, route: Route) -> None:
    """403 before anything is read, for every route that wants a scope."""
    answer = await edge.ask(route.method, _path(route), key="nothing", data=b"{" if route.request else None)
    if route.policy.kind == "key":
        # nothing to refuse the key for; what it may not ask it is told question by question
        assert answer.status == (200 if route.request is None else 415)
    else:
        assert await problem_of(answer) == (403, "forbidden", "Authorization")


async def test_the_wildcard_does_not_open_personal_lookups(edge: Edge) -> None:
    """A personal lookup is named one by one."""
    answer = await edge.ask("POST", "/v1/lookups/claim-already-open", key="lookups", json={})
    assert await problem_of(answer) == (403, "forbidden", "Authorization")


async def test_a_key_works_at_once_and_a_revoked_one_no_more(edge: Edge) -> None:
    """Made, used, revoked, refused; a key with the right id and the wrong secret is nobody."""
    keys = edge.context.keys
    token = await keys.add("officer", ["cases:read"])
    path = f"/v1/cases/{uuid4()}"
    headers = {"Authorization": f"bearer {token}"}
    assert (await edge.public.get(path, headers=headers)).status == 404
    forged = {"Authorization": f"Bearer {token[:-1]}{'A' if token[-1] != 'A' else 'B'}"}
    assert (await edge.public.get(path, headers=forged)).status == 401
    assert await keys.revoke(token.split("_")[1])
    assert (await edge.public.get(path, headers=headers)).status == 401
    assert not await keys.revoke(token.split("_")[1])


async def test_a_key_is_stored_as_a_hash_only(edge: Edge) -> None:
    """Nobody who reads the table can use what they read."""
    token = await edge.context.keys.add("officer", ["cases:read"])
    dumped = str([tuple(row) for row in await edge.context.pool.fetch("select * from api_key")])
    assert token.rsplit("_", 1)[1] not in dumped


@pytest.mark.parametrize(
    "path",
    [
        *sorted(_OPEN_ON_THE_ADMIN_PORT),
        "/", "/admin", "/admin/", "/v1", "/v1/", "/v2/cases", "/.env", "/.git/config", "/debug", "/debug/pprof",
        "/health", "/healthz", "/status", "/server-status", "/actuator", "/actuator/env", "/api", "/graphql",
        "/swagger", "/swagger.json", "/openapi.yaml", "/docs/", "/redoc", "/console", "/phpinfo.php", "/wp-login.php",
        "/favicon.ico", "/robots.txt", "/v1//lookups", "/v1/lookups/", "/v1/cases;x=1", "/V1/lookups",
    ],
)  # fmt: skip
async def test_the_public_port_serves_nothing_of_the_admin_port(edge: Edge, path: str) -> None:
    """Monitoring, descriptions and the usual guesses are 404, with or without a key."""
    for key in ("form", None):
        answer = await edge.ask("GET", path, key=key)
        assert answer.status in (404, 401), path
        if key:
            assert await problem_of(answer) == (404, "not_found", None)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "HEAD"])
async def test_other_methods_are_405_with_what_is_allowed(edge: Edge, method: str) -> None:
    """No route answers a method that its table line does not name; CORS is off."""
    answer = await edge.ask(method, "/v1/cases", headers={"Origin": "https://evil.example"})
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


async def test_headers_that_proxies_set_change_nothing(edge: Edge) -> None:
    """A caller cannot become somebody else by claiming it."""
    answer = await edge.ask(
        "GET",
        f"/v1/cases/{uuid4()}",
        key="nothing",
        headers={"X-User-ID": "admin", "X-Forwarded-For": "127.0.0.1", "X-HTTP-Method-Override": "GET", "X-Scope": "*"},
    )
    assert await problem_of(answer) == (403, "forbidden", "Authorization")
