"""The resident's form against the gateway's HTTP contract: the journey without JavaScript, and what may go wrong."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.dev.form.app import FormSettings, make_form
from gateway.dev.form.journeys import LIFETIME_S, Journeys, Photo
from gateway.dev.sse import messages
from tests.integration.broken_forms import BROKEN_FORMS
from tests.integration.gateway_double import KEY, Double

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 64
MONKS = "60002210"
CONTACT = {"name": "Alex Sample", "email": "alex@example.com", "telephone": "01632 960 001"}
REPORTED = {"reference": "RAP-AAAA-BBBB", "category": "litter", "status": "in_progress"}


@dataclass
class Page:
    status: int
    path: str
    text: str
    headers: Any

    @property
    def title(self) -> str:
        return str(re.findall(r"<title>(.*?)</title>", self.text)[0])

    @property
    def csrf(self) -> str:
        return str(re.findall(r'name="csrf" value="([^"]+)"', self.text)[0])


@dataclass
class Resident:
    """A browser without JavaScript."""

    http: aiohttp.ClientSession
    url: str
    page: Page | None = None

    async def open(self, path: str) -> Page:
        async with self.http.get(self.url + path) as response:
            return await self._keep(response)

    async def send(self, path: str | None = None, /, **fields: Any) -> Page:
        """Fills in the page's form and presses its button."""
        assert self.page is not None
        data = aiohttp.FormData()
        fields = fields if "csrf" in fields else {"csrf": self.page.csrf, **fields}
        for name, value in fields.items():
            if isinstance(value, bytes):
                data.add_field(name, io.BytesIO(value), filename="photo.png" if value else "", content_type="image/png")
            else:
                data.add_field(name, value)
        async with self.http.post(self.url + (path or self.page.path), data=data) as response:
            return await self._keep(response)

    async def _keep(self, response: aiohttp.ClientResponse) -> Page:
        self.page = Page(response.status, response.url.path, await response.text(), response.headers)
        return self.page

    async def to_check(self, photo: bytes | None = PNG) -> Page:
        """Answers every page."""
        await self.open("/find")
        await self.send(postcode="bn59 1aa")
        await self.send(uprn="900002")
        await self.send(toilet=MONKS)
        await self.send(category="dog-fouling")
        await self.send(description="By the door.\r\n\r\n\r\nAgain.")
        await self.send(photo=photo or b"")
        return await self.send(**CONTACT)


@pytest.fixture
async def double() -> AsyncIterator[tuple[Double, str]]:
    double = Double()
    async with serving(double.application()) as url:
        yield double, url


@pytest.fixture
async def gateway(double: tuple[Double, str]) -> Double:
    return double[0]


@pytest.fixture
async def resident(double: tuple[Double, str]) -> AsyncIterator[Resident]:
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        aiohttp.ClientSession() as outwards,
        serving(make_form(FormSettings(double[1], KEY), outwards)) as url,
        aiohttp.ClientSession(cookie_jar=jar) as http,
    ):
        yield Resident(http, url)


class serving:  # noqa: N801 - reads as what it does
    """An application on a free port for the length of a block."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, shutdown_timeout=0.2, access_log=None)

    async def __aenter__(self) -> str:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


@pytest.mark.parametrize("name", BROKEN_FORMS)
async def test_a_body_that_is_no_form_is_refused_with_a_page(
    resident: Resident, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken bytes are answered with 400 and the page for failures, and get into no log."""
    await resident.open("/find")
    content_type, body = BROKEN_FORMS[name]
    headers = {"Content-Type": content_type}
    async with resident.http.post(resident.url + "/find", data=body, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 400
        assert "Go to the start page" in text
        assert "needle" not in text
    assert "needle" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_the_whole_journey_makes_one_case(resident: Resident, gateway: Double) -> None:
    """What was answered page by page arrives as one case with its photo, and the resident has the reference."""
    check = await resident.to_check()
    assert check.path == "/check"
    for answer in ("Monks Recreation Ground", "Dog fouling", "By the door.\n\nAgain.", *CONTACT.values(), "photo"):
        assert answer in check.text
    sent = await resident.send()
    (case,) = gateway.cases.values()
    assert (sent.path, sent.status) == ("/submitted", 200)
    assert case["reference"] in sent.text
    assert "Report received" in sent.text
    assert "Photo added" in sent.text
    assert case["submitter"] == CONTACT
    assert case["location"] == {
        "easting": 518225.0,
        "northing": 104730.0,
        "uprn": MONKS,
        "description": "Monks Recreation Ground, Crabtree Lane, Lancing",
    }
    assert case["asset"] == {"uprn": MONKS, "name": "Monks Recreation Ground"}
    assert case["notes"] == [{"text": "By the door.\n\nAgain."}]
    assert gateway.photos == {case["id"]: PNG}


async def test_one_correlation_id_runs_through_a_journey(resident: Resident, gateway: Double) -> None:
    """Every request made for a report carries the same id, and the resident can read it."""
    await resident.to_check()
    sent = await resident.send()
    (correlation_id,) = set(gateway.correlation_ids)
    assert str(correlation_id) in sent.text


async def test_nothing_personal_is_in_an_address_or_a_cookie(resident: Resident, gateway: Double) -> None:
    """Names and addresses of people are nowhere near a URL or the browser's disk."""
    await resident.to_check()
    sent = await resident.send()
    cookies = str(list(resident.http.cookie_jar))
    for text in (*gateway.asked, sent.path, cookies):
        assert "lex" not in text
        assert "01632" not in text
    assert "HttpOnly" in cookies
    assert "SameSite=Lax" in cookies


async def test_every_page_keeps_itself_to_itself(resident: Resident) -> None:
    """No index, no cache, no inline script or style, no frame; and the key is never in what the browser gets."""
    await resident.to_check()
    for path in ("/", "/find", "/address", "/toilet", "/toilets", "/problem", "/photo", "/check", "/elsewhere", "/no"):
        page = await resident.open(path)
        policy = page.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "noindex" in page.headers["X-Robots-Tag"]
        assert page.headers["Cache-Control"] == "no-store"
        assert not re.search(r"<script>|style=|onclick|javascript:", page.text)
        assert KEY not in page.text


@pytest.mark.parametrize(
    ("path", "fields", "message", "kept"),
    [
        ("/find", {"postcode": ""}, "Enter a postcode", ""),
        ("/find", {"postcode": "Lancing"}, "Enter a full UK postcode", "Lancing"),
        ("/find", {"postcode": "ZZ99 9ZZ"}, "We have no addresses for ZZ99 9ZZ", "ZZ99 9ZZ"),
        ("/address", {"uprn": "1"}, "Select an address", "1 Crabtree Lane"),
        ("/toilet", {"toilet": "7"}, "Select a toilet", "Beach Green"),
        ("/problem", {"category": "nonsense"}, "Select what is wrong", ""),
        ("/describe", {"description": " \r\n "}, "Describe the problem", ""),
        ("/describe", {"description": "x" * 1001}, "must be 1000 characters or less", "x" * 1001),
        ("/contact", {"name": "", "email": "alex@example.com"}, "Enter your full name", "alex@example.com"),
        ("/contact", {"name": "Alex", "email": "alex@example"}, "correct format", "alex@example"),
        ("/contact", {"name": "Alex", "email": "a@b.uk", "telephone": "12"}, "Enter a telephone number", "a@b.uk"),
        ("/contact", {"name": "<b>Alex", "email": "x"}, "correct format", "&lt;b&gt;Alex"),
    ],
)
async def test_a_wrong_answer_is_named_and_kept(
    resident: Resident, path: str, fields: dict[str, str], message: str, kept: str
) -> None:
    """The page says what is wrong at its top and at the field, its title begins with Error, what was typed stays."""
    await resident.to_check()
    await resident.open(path)
    page = await resident.send(**fields)
    assert page.status == 400
    assert page.title.startswith("Error: ")
    assert 'data-module="govuk-error-summary"' in page.text
    assert page.text.count(message) >= 2
    assert kept in page.text
    wrong = re.findall(r'<a href="#([^"]+)">', page.text)
    assert wrong
    assert all(f'id="{field}"' in page.text for field in wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<svg onload=alert(1)>", "must be a JPG, PNG or WebP"),
        (b"GIF89a" + b"0" * 10, "must be a JPG, PNG or WebP"),
        (PNG[:8] + b"0" * 8 * 1024**2, "must be smaller than 8MB"),
        (b"0" * 40 * 1024**2, "must be smaller than 8MB"),
    ],
    ids=["svg", "gif", "over 8 MB", "over what is read"],
)
async def test_a_photo_that_is_none_is_refused(resident: Resident, content: bytes, message: str) -> None:
    """The first bytes decide, and the size; what the browser calls it does not count."""
    await resident.to_check()
    await resident.open("/photo")
    page = await resident.send(photo=content)
    assert page.status == 400
    assert message in page.text


async def test_a_photo_can_be_changed_and_removed(resident: Resident, gateway: Double) -> None:
    """The photo page shows what is held, replaces it, keeps it when nothing is chosen, and takes it away."""
    await resident.to_check(photo=None)
    assert "None" in (await resident.open("/check")).text
    await resident.open("/photo")
    assert (await resident.send(photo=PNG)).path == "/check"
    await resident.open("/photo")
    assert (await resident.send(photo=b"")).path == "/check"
    assert "is added to your report" in (await resident.open("/photo")).text
    await resident.send(remove="yes")
    assert "is added to your report" not in (await resident.open("/photo")).text
    await resident.open("/check")
    await resident.send()
    assert gateway.photos == {}


async def test_change_comes_back_to_the_check_page(resident: Resident) -> None:
    """An answer can be changed from the check page without answering the later pages again."""
    await resident.to_check()
    page = await resident.open("/problem")
    assert 'value="dog-fouling" checked' in page.text
    assert 'href="/check" class="govuk-back-link"' in page.text
    page = await resident.send(category="vandalism")
    assert page.path == "/check"
    assert "Vandalism or graffiti" in page.text


async def test_pages_cannot_be_skipped(resident: Resident) -> None:
    """A page whose question comes later leads back to the first unanswered one."""
    await resident.open("/find")
    assert (await resident.open("/check")).path == "/find"
    await resident.open("/toilets")
    await resident.send(toilet=MONKS)
    assert (await resident.open("/contact")).path == "/problem"


async def test_a_report_made_already_can_be_followed(resident: Resident, gateway: Double) -> None:
    """Who picks a reported toilet is told, can follow that report, or can go on."""
    gateway.reported = [REPORTED | {"reported_at": datetime.now(UTC).isoformat()}]
    await resident.open("/toilets")
    page = await resident.send(toilet=MONKS)
    assert page.path == "/already-reported"
    assert "In progress, reported" in page.text
    followed = await resident.send(report="RAP-AAAA-BBBB")
    assert followed.path.startswith("/follow/")
    assert "RAP" not in followed.path
    assert MONKS not in followed.path
    assert "The team is working on it." in followed.text
    gateway.reported = []
    assert "no longer open" in (await resident.open(followed.path)).text
    gateway.reported = [REPORTED | {"reported_at": datetime.now(UTC).isoformat()}]
    await resident.open("/already-reported")
    assert (await resident.send(report="another")).path == "/problem"


async def test_cannot_tell_is_said_and_stops_nobody(resident: Resident, gateway: Double) -> None:
    """When the council cannot say whether a problem was reported, the resident is told so and goes on."""
    gateway.cannot_tell = {"asset-already-reported"}
    await resident.open("/toilets")
    page = await resident.send(toilet=MONKS)
    assert page.path == "/problem"
    assert "We cannot check right now" in page.text
    assert "You can still report it" in page.text
    assert "We cannot check right now" not in (await resident.open("/problem")).text


@pytest.mark.parametrize("trouble", ["down", "cannot_tell"])
async def test_without_addresses_the_whole_list_is_offered(resident: Resident, gateway: Double, trouble: str) -> None:
    """An address lookup that gives nothing leads to the list of all toilets, with the reason."""
    getattr(gateway, trouble).add("addresses-by-postcode")
    await resident.open("/find")
    page = await resident.send(postcode="BN59 1AA")
    assert page.path == "/toilets"
    assert "We cannot check addresses right now, but you can still report" in page.text
    assert "Middle Street" in page.text


async def test_a_gateway_that_is_down_loses_no_answers(resident: Resident, gateway: Double) -> None:
    """The list last seen still serves, sending says honestly that it failed, and sending later makes one case."""
    await resident.open("/toilets")
    await resident.to_check()
    gateway.down = {"everything"}
    assert "Middle Street" in (await resident.open("/toilets")).text
    await resident.open("/toilet")
    await resident.send(toilet=MONKS)
    await resident.open("/check")
    page = await resident.send()
    assert page.status == 400
    assert "We could not send your report" in page.text
    assert "Alex Sample" in page.text
    gateway.down = set()
    assert (await resident.send()).path == "/submitted"
    assert len(gateway.cases) == 1


async def test_without_any_list_the_page_says_so(resident: Resident, gateway: Double) -> None:
    """A form that never saw the list of toilets cannot show one, and does not pretend."""
    gateway.down = {"everything"}
    page = await resident.open("/toilets")
    assert page.status == 503
    assert "We cannot show the toilets right now" in page.text


async def test_pressing_twice_sends_once(resident: Resident, gateway: Double) -> None:
    """A second press, also one after a lost answer, gives the same case."""
    check = await resident.to_check()
    await resident.send()
    await resident.send("/check", csrf=check.csrf)
    assert len(gateway.cases) == 1
    assert len(gateway.keys) == 1


async def test_a_refused_photo_does_not_lose_the_report(resident: Resident, gateway: Double) -> None:
    """The report stands, and the page says that the photo is not with it."""
    gateway.refuse_photo = True
    await resident.to_check()
    page = await resident.send()
    assert page.path == "/submitted"
    assert "the photo could not be added" in page.text
    assert len(gateway.cases) == 1


async def test_forms_of_other_sites_are_refused(resident: Resident, gateway: Double) -> None:
    """Without the page's own token, or when the browser says it came from elsewhere, nothing happens."""
    await resident.to_check()
    page = await resident.send("/check", csrf="guessed")
    assert page.status == 403
    check = await resident.open("/check")
    headers = {"Sec-Fetch-Site": "cross-site"}
    async with resident.http.post(resident.url + "/check", data={"csrf": check.csrf}, headers=headers) as response:
        assert response.status == 403
    assert not gateway.cases


async def test_an_expired_journey_is_explained(resident: Resident) -> None:
    """A browser whose answers are gone is told why."""
    resident.http.cookie_jar.clear()
    page = await resident.open("/check")
    assert "Your answers were deleted" in page.text


async def test_look_ahead_answers_by_post(resident: Resident) -> None:
    """The script's question gives addresses for a full postcode, and nothing personal stays in a URL."""
    page = await resident.open("/find")
    asked = {"csrf": page.csrf, "postcode": "bn591aa"}
    async with resident.http.post(resident.url + "/find/addresses", data=asked) as response:
        answer = await response.json()
    assert answer["postcode"] == "BN59 1AA"
    assert [one["uprn"] for one in answer["addresses"]] == ["900001", "900002"]
    await resident.open("/find")
    assert (await resident.send(postcode="BN591AA", uprn="900001")).path == "/toilet"


async def test_status_is_live(resident: Resident, gateway: Double) -> None:
    """The stream behind the page carries a change as it happens, without anything personal, from where it was left."""
    await resident.to_check()
    page = await resident.send()
    stream, after = re.findall(r'data-status-stream="([^"?]+)\?after=(\d+)"', page.text)[0]
    (case_id,) = gateway.cases
    assert case_id not in stream
    async with resident.http.get(resident.url + stream, headers={"Last-Event-ID": after}) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        await gateway.set_status(case_id, "fixed")
        async with asyncio.timeout(10):
            async for message in messages(response):
                if message.event == "moment":
                    break
    told = json.loads(message.data)
    assert message.id == "3"
    assert (told["title"], told["status"], told["colour"]) == ("Fixed", "Fixed", "green")
    assert "Fixed" in (await resident.open("/submitted")).text
    link = re.findall(r'href="(/status/[^"]+)"', (await resident.open("/submitted")).text)[0]
    assert "Alex" not in (await resident.open(link)).text


@pytest.mark.parametrize("token", ["x", "AAAA" * 20, "%00", "a1" * 300])
async def test_links_cannot_be_guessed(resident: Resident, token: str) -> None:
    """A token that this form did not make leads nowhere."""
    for path in (f"/status/{token}", f"/status/{token}/events", f"/follow/{token}"):
        assert (await resident.open(path)).status == 404


async def test_another_report_begins_empty(resident: Resident) -> None:
    """After sending, the same browser can report again and sees nothing of the first answers."""
    await resident.to_check()
    await resident.send()
    assert (await resident.open("/check")).path == "/submitted"
    page = await resident.open("/find")
    assert "BN59" not in page.text.replace("For example, BN59 1AA", "")
    assert (await resident.open("/check")).path == "/find"


def test_journeys_are_bounded() -> None:
    """Old journeys go after an hour, the longest untouched ones when there are too many, and photos have a limit."""
    now = 0.0
    journeys = Journeys(limit=2, photo_bytes=10, clock=lambda: now)
    first, _ = journeys.begin()
    second, _ = journeys.begin()
    assert journeys.find(first) is not None
    third, _ = journeys.begin()
    assert (journeys.find(second), journeys.find(first) is None) == (None, False)
    kept = journeys.find(third)
    assert kept is not None
    kept.photo = Photo(b"0" * 8, "image/png", "x.png")
    assert not journeys.room_for(Photo(b"0" * 3, "image/png", "y.png"))
    now = LIFETIME_S + 1
    assert journeys.find(third) is None
