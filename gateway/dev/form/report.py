"""What is wrong, in words and with a photo; who reports it; and sending it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.dev.form import answers
from gateway.dev.form.context import begun_journey, form_of, go, journey_of, posted, show
from gateway.dev.form.gateway import GatewayDown, NewCase, Refused
from gateway.dev.form.journeys import STEPS, Journey, Photo, Sent
from gateway.dev.form.place import ask

_NOT_SENT = (
    "We could not send your report because our systems are not answering. "
    "Your answers are kept for an hour: wait a few minutes and send it again"
)
_NOT_TAKEN = "Something in your answers could not be accepted. Check them and send the report again"
_FULL = "We cannot take photos right now. Continue without a photo"


def _at(request: web.Request, step: str) -> Journey:
    """The journey, once every page before `step` is answered; else the browser goes there first."""
    journey = begun_journey(request) if step == STEPS[0] else journey_of(request)
    if journey.sent is not None:
        raise go("/submitted")
    if missing := journey.missing_before(step):
        raise go(f"/{missing}")
    return journey


def _on(journey: Journey, step: str) -> web.HTTPSeeOther:
    journey.done.add(step)
    return go(f"/{journey.next_step(step)}")


def _back(journey: Journey, step: str) -> str:
    """Where the page's back link leads: to the check page when this is a change, else to the page before."""
    if all(one in journey.done for one in STEPS):
        return "/check"
    return f"/{STEPS[STEPS.index(step) - 1]}"


async def already_reported(request: web.Request) -> web.Response:
    return await _already_page(request, _at(request, "problem"), {})


async def already_posted(request: web.Request) -> web.Response:
    journey = _at(request, "problem")
    chosen = answers.line(await posted(request, journey), "report")
    if chosen == "another":
        raise go(f"/{journey.next_step('toilet')}")
    if journey.toilet is not None and 0 < len(chosen) <= 20:
        sealed = f"{journey.toilet['uprn']} {chosen}"
        raise go(f"/follow/{form_of(request).tokens.seal('follow', sealed)}")
    return await _already_page(request, journey, {"report": "Select what you want to do"})


async def _already_page(request: web.Request, journey: Journey, errors: dict[str, str]) -> web.Response:
    if journey.toilet is None:
        raise go("/problem")
    found = await ask(request, journey, "asset-already-reported", uprn=journey.toilet["uprn"])
    if not found.results:
        raise go(f"/{journey.next_step('toilet')}")
    reports = [
        {
            "reference": one["reference"],
            "category": answers.CATEGORY_TITLES.get(one["category"], "Something else"),
            "status": answers.STATUSES.get(one["status"], ("Received", "blue", ""))[:2],
            "at": answers.when(one["reported_at"]),
        }
        for one in found.results[:10]
    ]
    return show(
        request,
        "already.html",
        journey,
        errors=errors,
        reports=reports,
        toilet=answers.readable(journey.toilet["name"]),
    )


async def problem(request: web.Request) -> web.Response:
    journey = _at(request, "problem")
    return _problem_page(request, journey, {})


async def problem_posted(request: web.Request) -> web.Response:
    journey = _at(request, "problem")
    chosen = answers.line(await posted(request, journey), "category")
    if chosen not in answers.CATEGORY_TITLES:
        return _problem_page(request, journey, {"category": "Select what is wrong"})
    journey.answers["category"] = chosen
    raise _on(journey, "problem")


def _problem_page(request: web.Request, journey: Journey, errors: dict[str, str]) -> web.Response:
    return show(
        request,
        "problem.html",
        journey,
        errors=errors,
        values=journey.answers,
        options=answers.CATEGORIES,
        back=_back(journey, "problem"),
        notice=journey.take_notice(),
    )


async def describe(request: web.Request) -> web.Response:
    journey = _at(request, "describe")
    return _describe_page(request, journey, journey.answers, {})


async def describe_posted(request: web.Request) -> web.Response:
    journey = _at(request, "describe")
    text = answers.paragraphs(await posted(request, journey), "description")
    if errors := answers.check_description(text):
        return _describe_page(request, journey, {"description": text}, errors)
    journey.answers["description"] = text
    raise _on(journey, "describe")


def _describe_page(
    request: web.Request, journey: Journey, values: dict[str, str], errors: dict[str, str]
) -> web.Response:
    back = _back(journey, "describe")
    limit = answers.DESCRIPTION_LIMIT
    return show(request, "describe.html", journey, errors=errors, values=values, limit=limit, back=back)


async def photo(request: web.Request) -> web.Response:
    journey = _at(request, "photo")
    return _photo_page(request, journey, {})


async def photo_posted(request: web.Request) -> web.Response:
    journey = _at(request, "photo")
    try:
        form = await posted(request, journey)
    except web.HTTPRequestEntityTooLarge:
        return _photo_page(request, journey, {"photo": "The photo must be smaller than 8MB"})
    if "remove" in form:
        journey.photo = None
        raise go("/photo")
    taken, errors = _taken(form.get("photo"))
    if taken is not None and not form_of(request).journeys.room_for(taken):
        errors = {"photo": _FULL}
    if errors:
        return _photo_page(request, journey, errors)
    journey.photo = taken or journey.photo
    raise _on(journey, "photo")


def _taken(upload: object) -> tuple[Photo | None, dict[str, str]]:
    """The uploaded photo; nothing at all when the field was left empty."""
    if not isinstance(upload, web.FileField):
        return None, {}
    with upload.file as file:
        content = file.read(answers.PHOTO_LIMIT + 1)
    if not content and not upload.filename:
        return None, {}
    return answers.check_photo(content, upload.filename)


def _photo_page(request: web.Request, journey: Journey, errors: dict[str, str]) -> web.Response:
    held = journey.photo.name if journey.photo else ""
    return show(request, "photo.html", journey, errors=errors, held=held, back=_back(journey, "photo"))


async def contact(request: web.Request) -> web.Response:
    journey = _at(request, "contact")
    return show(request, "contact.html", journey, values=journey.answers, back=_back(journey, "contact"))


async def contact_posted(request: web.Request) -> web.Response:
    journey = _at(request, "contact")
    values, errors = answers.check_contact(await posted(request, journey))
    if errors:
        back = _back(journey, "contact")
        return show(request, "contact.html", journey, errors=errors, values=values, back=back)
    journey.answers |= values
    raise _on(journey, "contact")


async def check(request: web.Request) -> web.Response:
    return _check_page(request, _at(request, "check"), {})


async def send(request: web.Request) -> web.Response:
    """Sends the report once: pressing twice, or again after a time-out, gives the same case."""
    journey = _at(request, "check")
    await posted(request, journey)
    form = form_of(request)
    document = answers.case_document(journey)
    try:
        case = await form.gateway.create_case(
            document,
            idempotency_key=answers.idempotency_key(journey, document),
            correlation_id=journey.correlation_id,
        )
    except GatewayDown:
        return _check_page(request, journey, {"send": _NOT_SENT})
    except Refused:
        return _check_page(request, journey, {"send": _NOT_TAKEN})
    outcome = await _send_photo(request, journey, case)
    journey.sent = Sent(form.tokens.seal("status", str(case.id)), case.reference, outcome)
    # What was told to the council is no longer needed here.
    journey.answers, journey.photo, journey.address = {}, None, None
    raise go("/submitted")


async def _send_photo(request: web.Request, journey: Journey, case: NewCase) -> str:
    if journey.photo is None:
        return "none"
    photo = journey.photo
    try:
        await form_of(request).gateway.attach(case.id, photo.content, photo.media_type, journey.correlation_id)
    except (GatewayDown, Refused):
        # The report itself is with the council; the next page says that the photo is not.
        return "refused"
    return "added"


def _check_page(request: web.Request, journey: Journey, errors: dict[str, str]) -> web.Response:
    given = journey.answers
    problem_rows: list[tuple[str, Any, str, str]] = [
        ("Toilet", answers.readable((journey.toilet or {})["name"]), "/toilet", "toilet"),
        ("What is wrong", answers.CATEGORY_TITLES[given["category"]], "/problem", "what is wrong"),
        ("Description", given["description"], "/describe", "description"),
        ("Photo", journey.photo.name if journey.photo else "None", "/photo", "photo"),
    ]
    contact_rows = [
        ("Full name", given["name"], "/contact", "full name"),
        ("Email address", given["email"], "/contact", "email address"),
        ("Telephone number", given.get("telephone") or "Not given", "/contact", "telephone number"),
    ]
    return show(request, "check.html", journey, errors=errors, problem_rows=problem_rows, contact_rows=contact_rows)


ROUTES = (
    web.get("/already-reported", already_reported),
    web.post("/already-reported", already_posted),
    web.get("/problem", problem),
    web.post("/problem", problem_posted),
    web.get("/describe", describe),
    web.post("/describe", describe_posted),
    web.get("/photo", photo),
    web.post("/photo", photo_posted),
    web.get("/contact", contact),
    web.post("/contact", contact_posted),
    web.get("/check", check),
    web.post("/check", send),
)
