"""What every page of the form needs: its parts, the journey under way, and how a page is rendered."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from aiohttp import web

from gateway.admin.posted import posted_fields
from gateway.admin.rendering import page
from gateway.admin.tokens import Tokens
from gateway.dev.form.gateway import Gateway
from gateway.dev.form.journeys import Journey, Journeys

COOKIE = "journey"
FOLDER = Path(__file__).parent
CANNOT_CHECK = "We cannot check right now if this was reported already. You can still report it."


@dataclass(frozen=True, slots=True)
class Circle:
    """A part of the borough (OSGB36, metres). The lookup of toilets near a point has a largest distance."""

    easting: float
    northing: float
    metres: float


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of the application; `streaming` bounds how many browsers may listen to a status at once."""

    gateway: Gateway
    journeys: Journeys
    tokens: Tokens
    templates: jinja2.Environment
    borough: tuple[Circle, ...]
    council: str
    backstage: bool
    streaming: asyncio.Semaphore
    # The last whole list of toilets that the gateway gave, for when it gives none: toilets do not move.
    known_toilets: dict[str, dict[str, Any]] = field(default_factory=dict)


FORM: web.AppKey[Form] = web.AppKey("form", Form)
_BEGUN: web.RequestKey[str] = web.RequestKey("begun", str)


class Expired(Exception):
    """The cookie leads to no journey: an hour went by, or the form was restarted."""


def form_of(request: web.Request) -> Form:
    return request.app[FORM]


def journey_of(request: web.Request) -> Journey:
    """The journey of this browser. Raises Expired."""
    journey = form_of(request).journeys.find(request.cookies.get(COOKIE))
    if journey is None:
        raise Expired
    return journey


def begun_journey(request: web.Request) -> Journey:
    """The journey of this browser, begun now if there is none or the last one has been sent."""
    journey, key = any_journey(request), request.cookies.get(COOKIE)
    if journey.sent is not None and key is not None:
        return form_of(request).journeys.begin_again(key)
    return journey


def any_journey(request: web.Request) -> Journey:
    """The journey of this browser, sent or not, begun now if there is none."""
    journeys = form_of(request).journeys
    journey = journeys.find(request.cookies.get(COOKIE))
    if journey is None:
        request[_BEGUN], journey = journeys.begin()
    return journey


def set_cookie(request: web.Request, response: web.StreamResponse) -> None:
    """Gives the browser the cookie of a journey begun in this request."""
    if key := request.get(_BEGUN):
        response.set_cookie(COOKIE, key, httponly=True, samesite="Lax", secure=request.secure, path="/")


async def posted(request: web.Request, journey: Journey) -> Mapping[str, Any]:
    """The fields of a form that this site's own page sent. Raises HTTPForbidden or HTTPBadRequest for any other."""
    form = await posted_fields(request)
    sent = form.get("csrf")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), journey.csrf.encode()):
        raise web.HTTPForbidden
    return form


def show(
    request: web.Request,
    template: str,
    journey: Journey | None = None,
    *,
    errors: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
    **more: Any,
) -> web.Response:
    """The page; 400 when it tells of errors."""
    form = form_of(request)
    text = form.templates.get_template(template).render(
        council=form.council,
        backstage=form.backstage,
        csrf=journey.csrf if journey else "",
        errors=errors or {},
        values=values or {},
        **more,
    )
    return page(text, status=400 if errors else 200)


def go(path: str) -> web.HTTPSeeOther:
    return web.HTTPSeeOther(path)
