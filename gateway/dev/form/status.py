"""What became of a report: the page after sending, the page of a link, and the live stream behind both."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from uuid import UUID, uuid4

import aiohttp
from aiohttp import web

from gateway.admin.rendering import day_and_time
from gateway.dev.form import answers
from gateway.dev.form.context import form_of, go, journey_of, show
from gateway.dev.form.gateway import GatewayDown, Refused
from gateway.dev.sse import Message

_WRITE_S = 10.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of a report's timeline, without anything personal; `status` is empty when it did not change."""

    title: str
    when: str
    iso: str
    text: str
    status: str
    colour: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a status page shows of a case."""

    token: str
    reference: str
    category: str
    toilet: str
    status: str
    colour: str
    moments: tuple[Moment, ...]
    last_id: str


def moment(message: Message) -> Moment | None:
    """The timeline's line for an event; None for one that residents need not see."""
    event = json.loads(message.data)
    changed, status = set(event.get("changed", ())), str(event.get("status", ""))
    title, colour, text = answers.STATUSES.get(status, (status, "grey", ""))
    kind = str(event.get("type") or message.event)
    if kind.endswith("created"):
        title = "Report received"
    elif "status" in changed:
        pass
    elif kind.endswith("attached"):
        return _line(event["at"], "Photo added", "", "", "")
    else:
        return None
    return _line(event["at"], title, text, answers.STATUSES.get(status, (status,))[0], colour)


def _line(at: str, title: str, text: str, status: str, colour: str) -> Moment:
    when = answers.when(at)
    return Moment(title, day_and_time(when), when.isoformat(), text, status, colour)


async def submitted(request: web.Request) -> web.Response:
    journey = journey_of(request)
    if journey.sent is None:
        raise go("/")
    report = await _report(request, journey.sent.token, journey.correlation_id)
    sent = journey.sent
    return show(request, "submitted.html", report=report, sent=sent, correlation_id=journey.correlation_id)


async def status(request: web.Request) -> web.Response:
    token = request.match_info["token"]
    _case_id(request, token)
    return show(request, "status.html", report=await _report(request, token, str(uuid4())))


async def _report(request: web.Request, token: str, correlation_id: str) -> Report | None:
    """None when the gateway cannot say now."""
    gateway, case_id = form_of(request).gateway, _case_id(request, token)
    try:
        case = await gateway.case(case_id, correlation_id)
        events = await gateway.history(case_id, case["version"], correlation_id)
    except GatewayDown:
        return None
    except Refused as refused:
        if refused.status == 404:
            raise web.HTTPNotFound from refused
        return None
    title, colour, _ = answers.STATUSES.get(case["status"], (case["status"], "grey", ""))
    return Report(
        token=token,
        reference=case["reference"],
        category=answers.CATEGORY_TITLES.get(case["category"], "Something else"),
        toilet=answers.readable(case["asset"]["name"]),
        status=title,
        colour=colour,
        moments=tuple(line for event in events if (line := moment(event))),
        last_id=str(case["version"]),
    )


def _case_id(request: web.Request, token: str) -> UUID:
    text = form_of(request).tokens.open("status", token)
    if text is None:
        raise web.HTTPNotFound
    return UUID(text)


async def stream(request: web.Request) -> web.StreamResponse:
    """The case's events as timeline lines, for as long as the browser listens."""
    case_id = _case_id(request, request.match_info["token"])
    last_id = request.headers.get("Last-Event-ID") or request.query.get("after", "0")
    if not last_id.isdigit() or len(last_id) > 18:
        raise web.HTTPBadRequest
    streaming = form_of(request).streaming
    if streaming.locked():
        return web.Response(status=503, headers={"Retry-After": "30"})
    async with streaming:
        try:
            async with form_of(request).gateway.events(case_id, last_id, str(uuid4())) as events:
                response = web.StreamResponse(
                    headers={
                        "Content-Type": "text/event-stream",
                        "Cache-Control": "no-store",
                        "X-Accel-Buffering": "no",
                    }
                )
                await response.prepare(request)
                await _send(response, "retry: 3000\n\n")
                async for message in events:
                    await _send(response, _relayed(message))
        except (GatewayDown, Refused):
            return web.Response(status=503, headers={"Retry-After": "5"})
        except (ConnectionResetError, TimeoutError, aiohttp.ClientError):
            # The browser went away, or the gateway did: the browser asks again, from the last event it has seen.
            pass
    return response


def _relayed(message: Message) -> str:
    if message.event == "comment":
        return ": still here\n\n"
    line = moment(message)
    data = json.dumps(asdict(line)) if line else "{}"
    return f"id: {message.id}\nevent: {'moment' if line else 'other'}\ndata: {data}\n\n"


async def _send(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(_WRITE_S):
        await response.write(text.encode())


async def follow(request: web.Request) -> web.Response:
    """Another resident's report about the same toilet: its reference and status, nothing else."""
    form = form_of(request)
    text = form.tokens.open("follow", request.match_info["token"])
    if text is None:
        raise web.HTTPNotFound
    uprn, _, reference = text.partition(" ")
    try:
        found = await form.gateway.lookup("asset-already-reported", str(uuid4()), uprn=uprn)
    except (GatewayDown, Refused):
        return show(request, "follow.html", reference=reference, report=None, known=False)
    one = next((one for one in found.results if one["reference"] == reference), None)
    report = one and {
        "category": answers.CATEGORY_TITLES.get(one["category"], "Something else"),
        "status": answers.STATUSES.get(one["status"], (one["status"], "grey", "")),
        "at": answers.when(one["reported_at"]),
    }
    return show(request, "follow.html", reference=reference, report=report, known=found.verdict != "cannot_tell")


ROUTES = (
    web.get("/submitted", submitted),
    web.get("/status/{token}", status),
    web.get("/status/{token}/events", stream),
    web.get("/follow/{token}", follow),
)
