"""Finding the toilet: by postcode and address, or from the list of all toilets."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.dev.form import answers
from gateway.dev.form.context import CANNOT_CHECK, begun_journey, form_of, go, journey_of, posted, show
from gateway.dev.form.gateway import GatewayDown, LookupAnswer, Refused
from gateway.dev.form.journeys import Journey

_NEAR_M = 3000
_NEAREST = 6
_CANNOT_TELL = LookupAnswer("cannot_tell", [])


async def ask(request: web.Request, journey: Journey, name: str, **parameters: object) -> LookupAnswer:
    """The answer of a lookup; `cannot_tell` when the gateway gives none, because the resident can report anyway."""
    try:
        return await form_of(request).gateway.lookup(name, journey.correlation_id, **parameters)
    except (GatewayDown, Refused):
        return _CANNOT_TELL


def no_answer(answer: LookupAnswer) -> bool:
    return answer.verdict == "cannot_tell" and not answer.results


async def start(request: web.Request) -> web.Response:
    return show(request, "start.html")


async def find(request: web.Request) -> web.Response:
    journey = begun_journey(request)
    return show(request, "find.html", journey, values=journey.answers)


async def find_posted(request: web.Request) -> web.Response:
    journey = journey_of(request)
    form = await posted(request, journey)
    postcode, errors = answers.check_postcode(answers.line(form, "postcode"))
    if errors:
        return show(request, "find.html", journey, errors=errors, values={"postcode": postcode})
    answer = await ask(request, journey, "addresses-by-postcode", postcode=postcode)
    if no_answer(answer):
        raise _without_address(journey)
    if not answer.results:
        errors = {"postcode": f"We have no addresses for {postcode}. Check it, or choose from the list of toilets"}
        return show(request, "find.html", journey, errors=errors, values={"postcode": postcode})
    journey.answers["postcode"] = postcode
    if address := _one(answer, answers.line(form, "uprn")):
        raise _address_chosen(journey, address)
    raise go("/address")


async def addresses(request: web.Request) -> web.Response:
    """The addresses of a postcode, for the page's script. By POST: a postcode does not belong in an address bar."""
    journey = journey_of(request)
    form = await posted(request, journey)
    postcode, errors = answers.check_postcode(answers.line(form, "postcode"))
    found: list[dict[str, str]] = []
    if errors:
        verdict = "not_found"
    else:
        answer = await ask(request, journey, "addresses-by-postcode", postcode=postcode)
        verdict = "cannot_tell" if no_answer(answer) else answer.verdict
        found = [{"uprn": str(one["uprn"]), "address": answers.readable(one["address"])} for one in answer.results]
    return web.json_response(
        {"verdict": verdict, "postcode": postcode, "addresses": found}, headers={"Cache-Control": "no-store"}
    )


async def address(request: web.Request) -> web.Response:
    return await _address_page(request, journey_of(request), {})


async def address_posted(request: web.Request) -> web.Response:
    journey = journey_of(request)
    form = await posted(request, journey)
    postcode = journey.answers.get("postcode", "")
    answer = await ask(request, journey, "addresses-by-postcode", postcode=postcode) if postcode else _CANNOT_TELL
    if chosen := _one(answer, answers.line(form, "uprn")):
        raise _address_chosen(journey, chosen)
    return await _address_page(request, journey, {"uprn": "Select an address"})


async def _address_page(request: web.Request, journey: Journey, errors: dict[str, str]) -> web.Response:
    postcode = journey.answers.get("postcode")
    if postcode is None:
        raise go("/find")
    answer = await ask(request, journey, "addresses-by-postcode", postcode=postcode)
    if not answer.results:
        raise _without_address(journey)
    options = [(str(one["uprn"]), answers.readable(one["address"])) for one in answer.results]
    values = {"uprn": str(journey.address["uprn"])} if journey.address else {}
    return show(request, "address.html", journey, errors=errors, values=values, options=options, postcode=postcode)


async def toilet(request: web.Request) -> web.Response:
    return await _toilet_page(request, journey_of(request), {})


async def toilet_posted(request: web.Request) -> web.Response:
    journey = journey_of(request)
    form = await posted(request, journey)
    chosen = answers.line(form, "toilet")
    if chosen == answers.NOT_LISTED:
        raise go("/elsewhere")
    picked = _one(await _toilets(request, journey), chosen) or form_of(request).known_toilets.get(chosen)
    if picked is None:
        return await _toilet_page(request, journey, {"toilet": "Select a toilet"})
    journey.toilet = picked
    journey.done |= {"find", "toilet"}
    reported = await ask(request, journey, "asset-already-reported", uprn=picked["uprn"])
    if reported.results:
        raise go("/already-reported")
    if reported.verdict == "cannot_tell":
        journey.notice = CANNOT_CHECK
    raise go(f"/{journey.next_step('toilet')}")


async def whole_list(request: web.Request) -> web.Response:
    """Forgets the address: the next page lists every toilet."""
    journey = begun_journey(request)
    journey.address = None
    return await _toilet_page(request, journey, {})


async def _toilet_page(request: web.Request, journey: Journey, errors: dict[str, str]) -> web.Response:
    found = await _toilets(request, journey)
    if no_answer(found) and journey.address is not None:
        raise _without_address(journey)
    if no_answer(found):
        response = show(request, "unavailable.html", journey)
        response.set_status(503)
        return response
    options = [(str(one["uprn"]), answers.readable(one["name"]), _where(one, journey)) for one in found.results]
    return show(
        request,
        "toilet.html",
        journey,
        errors=errors,
        values={"toilet": str(journey.toilet["uprn"])} if journey.toilet else {},
        options=[*options, (answers.NOT_LISTED, "The toilet is not in this list", "")],
        address=journey.address,
        found=len(options),
        notice=journey.take_notice(),
    )


async def _toilets(request: web.Request, journey: Journey) -> LookupAnswer:
    """The nearest toilets of the chosen address, nearest first; without an address all of them by name."""
    if at := journey.address:
        near = await ask(
            request, journey, "assets-near", easting=at["easting"], northing=at["northing"], metres=_NEAR_M
        )
        return LookupAnswer(near.verdict, near.results[:_NEAREST])
    return await _all_toilets(request, journey)


async def _all_toilets(request: web.Request, journey: Journey) -> LookupAnswer:
    form, found = form_of(request), dict[str, dict[str, Any]]()
    for part in form.borough:
        answer = await ask(
            request, journey, "assets-near", easting=part.easting, northing=part.northing, metres=part.metres
        )
        if no_answer(answer):
            # Half a list would say that a toilet is not there.
            found = form.known_toilets
            break
        found |= {str(one["uprn"]): one for one in answer.results}
    form.known_toilets.update(found)
    by_name = sorted(found.values(), key=lambda one: str(one["name"]))
    return LookupAnswer("found" if by_name else "cannot_tell", by_name)


def _where(toilet: dict[str, Any], journey: Journey) -> str:
    """The street address unless the name says it already, and how far it is from the chosen address."""
    parts = []
    if (street := toilet.get("street_address")) and street != toilet["name"]:
        parts.append(answers.readable(street))
    if journey.address:
        metres = float(toilet["metres"])
        parts.append(f"{round(metres, -1):.0f} metres away" if metres < 1000 else f"{metres / 1000:.1f} km away")
    return ", ".join(parts)


async def elsewhere(request: web.Request) -> web.Response:
    return show(request, "elsewhere.html")


def _one(answer: LookupAnswer, uprn: str) -> dict[str, Any] | None:
    return next((one for one in answer.results if str(one["uprn"]) == uprn), None)


def _address_chosen(journey: Journey, chosen: dict[str, Any]) -> web.HTTPSeeOther:
    journey.address = chosen
    journey.done.add("find")
    return go("/toilet")


def _without_address(journey: Journey) -> web.HTTPSeeOther:
    """On to the list of all toilets, with the reason."""
    journey.address = None
    journey.notice = (
        "We cannot check addresses right now, but you can still report the problem. Choose from all toilets."
    )
    return go("/toilets")


ROUTES = (
    web.get("/", start),
    web.get("/find", find),
    web.post("/find", find_posted),
    web.post("/find/addresses", addresses),
    web.get("/address", address),
    web.post("/address", address_posted),
    web.get("/toilets", whole_list),
    web.post("/toilets", toilet_posted),
    web.get("/toilet", toilet),
    web.post("/toilet", toilet_posted),
    web.get("/elsewhere", elsewhere),
)
