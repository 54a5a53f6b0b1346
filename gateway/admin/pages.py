"""The operator's pages on the admin port: what waits, what failed, and what flowed where. They change nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID, uuid4

import asyncpg
import jinja2
from aiohttp import web

from gateway.admin.access import (
    COOKIE,
    OPERATOR,
    Handler,
    Sessions,
    drop_session,
    from_this_site,
    set_session,
)
from gateway.admin.flow import find_flow, what_resolves
from gateway.admin.overview import read_overview, read_rejects
from gateway.admin.posted import posted_fields
from gateway.admin.queries import QUERIES
from gateway.admin.rendering import STATIC, add_security_headers, age, environment, page
from gateway.audit import AuditUnavailable, Detail
from gateway.auth import ApiKeys, Unauthenticated
from streams.outages import DATABASE_ERRORS

_PAGE = 50
_LONGEST = 100
# Where a row may be: what lies outside, the database would refuse instead of finding nothing.
_YEARS = range(1970, 9999)
_MAX_N = 2**63 - 1
_DEADLINE_S = 10.0
_QUERY_S = 5.0
# What a database that is away or failing over raises.
_AWAY = (*DATABASE_ERRORS, AuditUnavailable)
_NAVIGATION = (
    ("", "Overview"),
    ("flow", "What flowed where"),
    ("cases", "Cases"),
    ("parked", "Parked"),
    ("effects", "Effects"),
    ("rejects", "Rejects"),
    ("audit", "Audit"),
)


class AuditLog(Protocol):
    async def record(
        self, *, actor: str, action: str, subject: str, outcome: str, correlation_id: str, detail: Detail
    ) -> None: ...


class Operated(Protocol):
    """The part of the server's context that these pages use."""

    @property
    def pool(self) -> asyncpg.Pool: ...
    @property
    def keys(self) -> ApiKeys: ...
    @property
    def audit(self) -> AuditLog: ...
    @property
    def digest(self) -> Callable[..., bytes]: ...


@dataclass(frozen=True, slots=True)
class _Pages:
    pool: asyncpg.Pool
    audit: AuditLog
    sessions: Sessions
    templates: jinja2.Environment


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a list goes on: after the row with this time and id."""

    at: datetime | None = None
    id: UUID | None = None
    n: int | None = None

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The position that `str` wrote; the list's beginning for anything else."""
        try:
            moment, identity, number = text.split("~")
            at, n = _in_utc(datetime.fromisoformat(moment)), int(number)
            return cls(at, UUID(identity), n) if at.year in _YEARS and 0 <= n <= _MAX_N else cls()
        # a time next to the first or last year has no UTC that Python could hold
        except (ValueError, OverflowError):
            return cls()

    def __str__(self) -> str:
        return f"{self.at.isoformat()}~{self.id}~{self.n or 0}" if self.at else ""


def _in_utc(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


_PAGES: web.AppKey[_Pages] = web.AppKey("pages", _Pages)


def add_pages(app: web.Application, context: Operated) -> None:
    """Puts the pages under /admin/ of the admin port's application."""
    pages = web.Application(middlewares=[_guard])
    pages[_PAGES] = _Pages(
        pool=context.pool,
        audit=context.audit,
        sessions=Sessions(context.keys, context.digest(b"operator's pages: session")),
        templates=environment(Path(__file__).with_name("templates")),
    )
    pages.on_response_prepare.append(_headers)
    pages.router.add_static("/static", STATIC)
    pages.add_routes(
        [
            web.get("", _home),
            web.get("/", _overview),
            web.get("/login", _login_page),
            web.post("/login", _login),
            web.post("/logout", _logout),
            web.get("/flow", _flow),
            web.get("/cases", _cases),
            web.get("/parked", _parked),
            web.get("/parked/case", _parked_case),
            web.get("/effects", _effects),
            web.get("/rejects", _rejects),
            web.get("/audit", _audit),
        ]
    )
    app.add_subapp("/admin", pages)


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    add_security_headers(response)


def _is_open(request: web.Request) -> bool:
    """The login page and its style: all that a stranger may see."""
    return request.path == "/admin/login" or request.path.startswith("/admin/static/")


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Lets operators in, sends everybody else to the login page, and says so when the database is away."""
    pages = request.app[_PAGES]
    if request.method == "POST" and not from_this_site(request):
        raise web.HTTPForbidden(text="This form was sent by another website.")
    try:
        async with asyncio.timeout(_DEADLINE_S):
            if not _is_open(request):
                operator = await pages.sessions.operator(request.cookies.get(COOKIE))
                if operator is None:
                    raise web.HTTPSeeOther("/admin/login")
                request[OPERATOR] = operator
            return await handler(request)
    except _AWAY:
        response = _show(request, "operator_away.html", title="The database does not answer")
        response.set_status(503)
        response.headers["Retry-After"] = "5"
        return response


def _show(request: web.Request, template: str, *, title: str, here: str = "", **more: Any) -> web.Response:
    operator = request.get(OPERATOR)
    return page(
        request.app[_PAGES]
        .templates.get_template(template)
        .render(
            title=title,
            here=here,
            navigation=_NAVIGATION if operator else (),
            operator=operator.name if operator else "",
            now=datetime.now(UTC),
            age=age,
            **more,
        )
    )


async def _home(_: web.Request) -> web.Response:
    raise web.HTTPSeeOther("/admin/")


async def _login_page(request: web.Request) -> web.Response:
    return _show(request, "operator_login.html", title="Sign in", errors={})


async def _login(request: web.Request) -> web.Response:
    pages, key = request.app[_PAGES], (await posted_fields(request)).get("key", "")
    try:
        operator, cookie = await pages.sessions.open(key if isinstance(key, str) else "")
    except Unauthenticated:
        errors = {"key": "Enter an API key that has the scope admin:read"}
        response = _show(request, "operator_login.html", title="Sign in", errors=errors)
        response.set_status(400)
        return response
    await pages.audit.record(
        actor=operator.actor,
        action="admin.login",
        subject=operator.id,
        outcome="done",
        correlation_id=str(uuid4()),
        detail={},
    )
    answer = web.HTTPSeeOther("/admin/")
    set_session(request, answer, cookie)
    raise answer


async def _logout(_: web.Request) -> web.Response:
    answer = web.HTTPSeeOther("/admin/login")
    drop_session(answer)
    raise answer


async def _overview(request: web.Request) -> web.Response:
    overview = await read_overview(request.app[_PAGES].pool, timeout_s=_QUERY_S)
    return _show(request, "operator_overview.html", title="Overview", overview=overview)


async def _flow(request: web.Request) -> web.Response:
    asked = request.query.get("q", "").strip()[:_LONGEST]
    found = await find_flow(request.app[_PAGES].pool, asked, timeout_s=_QUERY_S) if _plain(asked) else None
    return _show(request, "operator_flow.html", title="What flowed where", here="flow", asked=asked, found=found)


async def _cases(request: web.Request) -> web.Response:
    return await _list(request, "cases", "Cases", "status", ("created_at", "id"))


async def _effects(request: web.Request) -> web.Response:
    return await _list(request, "effects", "Effects", "state", ("created_at", "effect_id"), what_resolves=what_resolves)


async def _audit(request: web.Request) -> web.Response:
    return await _list(request, "audit", "Audit", "action", ("at", "chain"), more_facts=_facts)


async def _list(
    request: web.Request, name: str, title: str, filter_name: str, position: tuple[str, str], **more: Any
) -> web.Response:
    """One page of a list that may be long, newest first; the next begins after its last row."""
    wanted = request.query.get(filter_name, "").strip()[:_LONGEST]
    wanted = wanted if _plain(wanted) else ""
    after = Cursor.parse(request.query.get("after", ""))
    parameters: list[object] = [wanted or None, after.at, after.id, _PAGE + 1]
    if name == "audit":
        parameters.append(after.n)
    rows = await request.app[_PAGES].pool.fetch(QUERIES[name], *parameters, timeout=_QUERY_S)
    shown, last = rows[:_PAGE], rows[_PAGE - 1] if len(rows) > _PAGE else None
    older = Cursor(last[position[0]], last[position[1]], last.get("n")) if last else Cursor()
    return _show(
        request,
        f"operator_{name}.html",
        title=title,
        here=name,
        rows=shown,
        filter_name=filter_name,
        wanted=wanted,
        older=str(older),
        paged=after.at is not None,
        **more,
    )


async def _parked(request: web.Request) -> web.Response:
    pool = request.app[_PAGES].pool
    rows = await pool.fetch(QUERIES["parked"], 500, timeout=_QUERY_S)
    strays = await pool.fetch(QUERIES["strays"], 100, timeout=_QUERY_S)
    return _show(request, "operator_parked.html", title="Parked cases", here="parked", rows=rows, strays=strays)


async def _parked_case(request: web.Request) -> web.Response:
    """Why one case is parked at one group, what waits there, and what was given up before."""
    group, case_id = request.query.get("group", "")[:_LONGEST], _uuid(request.query.get("id", ""))
    row, events, dropped = None, [], []
    if _plain(group) and case_id is not None:
        async with (
            request.app[_PAGES].pool.acquire(timeout=_QUERY_S) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = await connection.fetchrow(QUERIES["parked_case"], group, case_id, timeout=_QUERY_S)
            events = await connection.fetch(QUERIES["parked_events"], group, case_id, 200, timeout=_QUERY_S)
            dropped = await connection.fetch(QUERIES["dropped_events"], group, case_id, 200, timeout=_QUERY_S)
    response = _show(
        request,
        "operator_parked_case.html",
        title="A parked case",
        here="parked",
        row=row,
        events=events,
        dropped=dropped,
    )
    if row is None and not dropped:
        response.set_status(404)
    return response


async def _rejects(request: web.Request) -> web.Response:
    silos = await read_rejects(request.app[_PAGES].pool, limit=500, timeout_s=_QUERY_S)
    return _show(request, "operator_rejects.html", title="Rejected rows", here="rejects", silos=silos)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _plain(text: str) -> bool:
    """Whether a text may be a parameter of a query: Postgres takes no NUL, UTF-8 no lone surrogate."""
    return bool(text) and text.isprintable()


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    detail: dict[str, object] = json.loads(row["detail"])
    return [(name.replace("_", " "), str(value)) for name, value in detail.items() if value is not None]
