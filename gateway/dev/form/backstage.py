"""What a resident never sees: the recipients' own screens and the mailbox, so that one person can play every part."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from aiohttp import web

from gateway.dev.desks import DESKS, Screens
from gateway.dev.form.answers import line
from gateway.dev.form.context import any_journey, go, journey_of, posted, show
from gateway.dev.mailbox import read_mails


@dataclass(frozen=True, slots=True)
class Backstage:
    screens: Screens
    maildir: Path


_BACKSTAGE: web.AppKey[Backstage] = web.AppKey("backstage", Backstage)


def add_backstage(app: web.Application, backstage: Backstage) -> None:
    """Adds the pages /back-office and /mailbox to the form."""
    app[_BACKSTAGE] = backstage
    app.add_routes(
        [
            web.get("/back-office", _back_office),
            web.post("/back-office", _set_status),
            web.get("/mailbox", _mailbox),
        ]
    )


async def _back_office(request: web.Request) -> web.Response:
    screens, journey = request.app[_BACKSTAGE].screens, any_journey(request)
    try:
        desks = [(desk, await screens.rows(desk)) for desk in DESKS]
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        raise web.HTTPServiceUnavailable from None
    return show(request, "back_office.html", journey, desks=desks)


async def _set_status(request: web.Request) -> web.Response:
    form = await posted(request, journey_of(request))
    desk = next((desk for desk in DESKS if desk.name == line(form, "desk")), None)
    if desk is None:
        raise web.HTTPBadRequest
    if not await request.app[_BACKSTAGE].screens.set_status(desk, line(form, "row"), line(form, "status")):
        raise web.HTTPBadRequest
    raise go("/back-office")


async def _mailbox(request: web.Request) -> web.Response:
    mails = await asyncio.to_thread(read_mails, request.app[_BACKSTAGE].maildir)
    return show(request, "mailbox.html", mails=mails)
