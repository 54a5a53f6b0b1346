"""The demo's other parts: the recipients' own screens and the mailbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway.dev.addresses import Database
from gateway.dev.desks import CONTRACTOR, STREET_TEAM, Desk, Screens
from gateway.dev.form.app import FormSettings, make_form
from gateway.dev.form.backstage import Backstage, add_backstage
from gateway.dev.mailbox import find_mail, read_mails
from gateway.dev.steps import StepFailed
from tests.integration.test_form import Resident, serving

_SCHEMAS = Path(__file__).resolve().parents[2] / "deploy/integrations/report-a-problem/recipients"


@pytest.fixture
async def screens(database: Database) -> AsyncIterator[Screens]:
    """Both recipients' tables, here in one database, with a row each."""
    async with asyncpg.create_pool(database.url, min_size=1, max_size=2) as pool:
        await pool.execute((_SCHEMAS / "street-team.schema.sql").read_text())
        await pool.execute("drop table silogate_fence")
        await pool.execute((_SCHEMAS / "contractor.schema.sql").read_text())
        await pool.execute(
            "insert into street.job (gateway_ref, gateway_version, raised_at, job_type, site_name, easting, northing,"
            " details) values ('RAP-7KQ2-93XD', 1, now(), 'DOG_FOULING', 'Beach Green', 518072, 103649, 'By the door')"
        )
        await pool.execute(
            "insert into fault_log (client_ref, client_rev, logged_on, fault_code, status_code, lat, lon, asset_ref,"
            " site, fault_text) values ('RAP-0000-BLCK', 1, now(), 'BLK', 'LOGGED', 50.8, -0.3, 'UPRN60014163',"
            " 'MIDDLE STREET', 'Left basin')"
        )
        yield Screens({STREET_TEAM.name: pool, CONTRACTOR.name: pool})


@pytest.fixture
async def resident(screens: Screens, tmp_path: Path) -> AsyncIterator[Resident]:
    """A browser at a form whose gateway is away: these pages do not need it."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession() as outwards:
        app = make_form(FormSettings("http://127.0.0.1:9", "sg_unused", backstage=True), outwards)
        add_backstage(app, Backstage(screens, tmp_path))
        async with serving(app) as url, aiohttp.ClientSession(cookie_jar=jar) as http:
            yield Resident(http, url)


@pytest.mark.parametrize(
    ("desk", "reference", "status"),
    [(STREET_TEAM, "RAP-7KQ2-93XD", "no action"), (CONTRACTOR, "RAP-0000-BLCK", "COMPLETE")],
    ids=["street team", "contractor"],
)
async def test_a_status_is_set_in_the_recipients_own_database(
    resident: Resident, screens: Screens, desk: Desk, reference: str, status: str
) -> None:
    """The page shows each recipient's rows in its own words and changes its own table only."""
    page = await resident.open("/back-office")
    assert "This page is not part of Silogate" in page.text
    row = await screens.find(desk, reference)
    assert row is not None
    page = await resident.send(desk=desk.name, row=row["id"], status=status)
    assert page.path == "/back-office"
    changed = await screens.find(desk, reference)
    assert changed is not None
    assert changed["status"] == status
    assert changed["modified_at"] > row["modified_at"]


async def test_the_back_office_refuses_what_it_does_not_know(resident: Resident, screens: Screens) -> None:
    """No unknown desk, row or status, and nothing without the page's own token."""
    await resident.open("/back-office")
    row = await screens.find(STREET_TEAM, "RAP-7KQ2-93XD")
    assert row is not None
    sent = {"desk": "street-team", "row": row["id"], "status": "done"}
    assert (await resident.send(csrf="guessed", **sent)).status == 403
    for wrong in ({"desk": "nobody"}, {"row": "0"}, {"status": "LOGGED"}):
        await resident.open("/back-office")
        assert (await resident.send(**sent | wrong)).status == 400
    assert (await screens.find(STREET_TEAM, "RAP-7KQ2-93XD")) == row


async def test_the_mailbox_shows_what_came(resident: Resident, tmp_path: Path) -> None:
    """Messages with their text, escaped; one that came twice is noticed."""
    assert "No message yet" in (await resident.open("/mailbox")).text
    message = EmailMessage()
    message["Subject"] = "We have received your report: RAP-7KQ2-93XD"
    message["To"] = "Exempla <resident@example.org>"
    message.set_content("Thank you.\n<b>Not bold</b>\n")
    message.add_alternative("<p>Thank you.</p>", subtype="html")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1").write_bytes(bytes(message))
    text = (await resident.open("/mailbox")).text
    assert "RAP-7KQ2-93XD" in text
    assert "&lt;b&gt;Not bold" in text
    mail = await find_mail(tmp_path, "RAP-7KQ2-93XD")
    assert mail is not None
    assert mail.to == "Exempla <resident@example.org>"
    assert await find_mail(tmp_path, "RAP-0000-BLCK") is None
    (tmp_path / "new" / "2").write_bytes(bytes(message))
    assert len(read_mails(tmp_path)) == 2
    with pytest.raises(StepFailed):
        await find_mail(tmp_path, "RAP-7KQ2-93XD")


async def test_looking_backstage_ends_no_journey(resident: Resident) -> None:
    """The same browser may look at the back office between two pages of the form."""
    form = await resident.open("/find")
    cookie = str(list(resident.http.cookie_jar))
    assert (await resident.open("/back-office")).csrf == form.csrf
    assert str(list(resident.http.cookie_jar)) == cookie
