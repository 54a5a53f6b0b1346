"""The form as an aiohttp application: its routes, and what holds for every page."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from gateway.admin.rendering import STATIC, add_security_headers, environment
from gateway.admin.tokens import Tokens
from gateway.dev.form import place, report, status
from gateway.dev.form.answers import PHOTO_LIMIT, readable
from gateway.dev.form.context import FOLDER, FORM, Circle, Expired, Form, set_cookie, show
from gateway.dev.form.gateway import Gateway
from gateway.dev.form.journeys import Journeys

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = logging.getLogger(__name__)
# Half of the connections that the client session may hold: lookups must not wait for streams.
_STREAMS = 50
_SAFE = ("GET", "HEAD")
_OWN = ("same-origin", "none")


@dataclass(frozen=True, slots=True)
class FormSettings:
    """Where the gateway is and the key that this website asks it with; `secret` seals the links to a status."""

    gateway_url: str
    api_key: str = field(repr=False)
    secret: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    council: str = "Sample Borough Council"
    borough: tuple[Circle, ...] = (Circle(519_400, 104_500, 3_000), Circle(523_000, 105_200, 3_000))
    backstage: bool = False


def make_form(settings: FormSettings, http: aiohttp.ClientSession) -> web.Application:
    """The form; `http` is used for every request to the gateway and outlives it."""
    # Photos over the limit are read to their end, so that a browser sees the page that says so.
    app = web.Application(middlewares=[_pages], client_max_size=4 * PHOTO_LIMIT)
    templates = environment(FOLDER / "templates")
    templates.filters["readable"] = readable
    app[FORM] = Form(
        gateway=Gateway(http, settings.gateway_url, settings.api_key),
        journeys=Journeys(),
        tokens=Tokens(settings.secret),
        templates=templates,
        borough=settings.borough,
        council=settings.council,
        backstage=settings.backstage,
        streaming=asyncio.Semaphore(_STREAMS),
    )
    app.on_response_prepare.append(_headers)
    app.add_routes([*place.ROUTES, *report.ROUTES, *status.ROUTES])
    app.router.add_static("/assets", STATIC)
    app.router.add_static("/form", FOLDER / "static")
    return app


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    add_security_headers(response)


@web.middleware
async def _pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that another site caused, and gives every failure a page."""
    if request.method not in _SAFE and request.headers.get("Sec-Fetch-Site", "none") not in _OWN:
        return _failure(request, 403)
    try:
        response = await handler(request)
    except Expired:
        return show(request, "expired.html")
    except web.HTTPSeeOther as redirect:
        set_cookie(request, redirect)
        raise
    except web.HTTPException as failure:
        return _failure(request, failure.status)
    # The page a resident sees must not be a blank one, whatever went wrong; the fault is in the log with its traceback.
    except Exception:  # noqa: BLE001 - said above
        _log.exception("page_failed")
        return _failure(request, 500)
    set_cookie(request, response)
    return response


def _failure(request: web.Request, status: int) -> web.Response:
    response = show(request, "failure.html", status=status)
    response.set_status(status if status >= 400 else 500)
    return response
