"""The whole service under faults: real processes killed, stopped and restarted, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest

from gateway.dev.addresses import Database, Servers
from gateway.dev.mailbox import read_mails
from gateway.dev.running import png
from gateway.dev.stack import Stack
from tests.council import MONKS, Town, report, town, until
from tests.journal import Journal

pytestmark = pytest.mark.faults


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        yield made


@pytest.mark.timeout(180)
async def test_a_report_goes_all_the_way_and_comes_back(here: Town) -> None:
    """Submitted once: one row at the right recipient only, its status back on the case, one mail to the resident."""
    await here.start("serve")
    await here.start("work")
    case = await here.submit("dog-fouling")
    await here.delivered("street-team", {case["reference"]: 1})
    assert await here.at_recipient("contractor") == {}

    await here.set_status(case["reference"], "doing")

    async def in_progress() -> int | None:
        _, body, _ = await here.call("GET", f"/v1/cases/{case['id']}")
        return body["version"] if body["status"] == "in_progress" else None

    assert await until("the recipient's status on the case", in_progress) == 2

    async def mailed() -> bool | None:
        rows = await here.sql("select state from effect")
        return True if [row["state"] for row in rows] == ["done"] else None

    await until("the effect done", mailed)
    mails = await asyncio.to_thread(read_mails, here.servers.maildir)
    assert sum(case["reference"] in mail.subject for mail in mails) == 1


@pytest.mark.timeout(180)
async def test_an_edited_file_is_the_new_answer_after_a_load(here: Town) -> None:
    """Edit the CSV, load, ask: the answer changes, though Redis held the old one and its time to live is hours away."""
    await here.council.load(["assets"])
    await here.start("serve")

    async def name_of_monks() -> str:
        status, body, _ = await here.lookup("asset-by-uprn", uprn=MONKS["uprn"])
        assert status == 200, body
        return str(body["results"][0]["name"])

    async def hit() -> bool | None:
        await name_of_monks()
        _, _, headers = await here.lookup("asset-by-uprn", uprn=MONKS["uprn"])
        return True if "hit" in headers["Cache-Status"] else None

    await until("the answer out of Redis", hit)
    assert await name_of_monks() == MONKS["name"]
    source = here.council.files / "assets" / "assets.csv"
    renamed = MONKS["name"].replace("PUBLIC CONVENIENCES", "PUBLIC TOILETS")
    text = source.read_bytes().decode("utf-8")
    assert MONKS["name"] in text
    source.write_bytes(text.replace(f",{MONKS['name']},OSGB36", f",{renamed},OSGB36").encode())
    await here.council.load(["assets"])

    async def renamed_seen() -> bool | None:
        return True if await name_of_monks() == renamed else None

    await until("the new name", renamed_seen, timeout_s=10)


@pytest.mark.timeout(180)
async def test_a_stale_silo_cannot_tell_and_a_report_is_seen_at_once(here: Town) -> None:
    """Past its max_age a silo says `cannot_tell`, never `not_found`; a report is known the moment it is submitted."""
    claims = here.council.files / "claims" / "claims.csv"
    await here.council.load(["claims"])
    await here.start("serve")
    nobody = {"nino": "QQ999999A", "date_of_birth": "1950-01-01"}

    async def ask() -> tuple[int, dict[str, str]]:
        status, body, _ = await here.call(
            "POST", "/v1/lookups/claim-already-open", nobody, key=here.council.benefits_key
        )
        return status, body

    status, body = await ask()
    assert (status, body["verdict"]) == (200, "not_found"), body
    # the same export, but of last week
    week_ago = claims.stat().st_mtime - 7 * 86400
    os.utime(claims, (week_ago, week_ago))
    await here.council.load(["claims"])

    async def cannot_tell() -> bool | None:
        _, body = await ask()
        return True if body["verdict"] == "cannot_tell" else None

    await until("cannot_tell", cannot_tell, timeout_s=15)
    assert (await here.lookup("asset-already-reported", uprn=MONKS["uprn"]))[1]["verdict"] == "not_found"
    case = await here.submit()
    _, body, _ = await here.lookup("asset-already-reported", uprn=MONKS["uprn"])
    assert [row["reference"] for row in body["results"]] == [case["reference"]]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "where",
    ["recipient.before_transaction", "recipient.before_commit", "recipient.after_commit", "recipient.after_xref"],
)
async def test_a_worker_killed_between_kafka_and_the_recipient_loses_and_doubles_nothing(
    here: Town, where: str
) -> None:
    """kill -9 with events in flight: after a restart every case is at its recipient once, at its newest version."""
    await here.start("serve")

    async def in_flight() -> int:
        rows = await here.sql(
            "select count(*) as n from cases c where not exists"
            " (select from xref x where x.case_id = c.id and x.version = c.version)"
        )
        return int(rows[0]["n"])

    async with Journal(in_flight).kept() as journal:
        cases = [await here.submit(category) for category in ("litter", "dog-fouling", "litter", "vandalism")]
        for case in cases[:2]:
            status, _, _ = await here.call("POST", f"/v1/cases/{case['id']}/notes", {"text": "It is worse today."})
            assert status == 201
        dying = await here.start("work", SILOGATE_FAIL=f"{where}:kill", SILOGATE_FAIL_JOURNAL=journal.address)
        async with asyncio.timeout(60):
            code = await dying.process.wait()
        # the leash passes on how the worker ended: -9 as an exit code
        assert code in {-9, 247}, code
        (seen,) = journal.seen
        assert seen.name == where
        assert seen.work > 0
    await here.start("work")
    wanted = {case["reference"]: 2 if number < 2 else 1 for number, case in enumerate(cases)}
    await here.delivered("street-team", {case["reference"]: wanted[case["reference"]] for case in cases[:3]})
    await here.delivered("contractor", {cases[3]["reference"]: 1})

    async def all_done() -> bool | None:
        rows = await here.sql("select state from effect")
        return True if len(rows) == 4 and {row["state"] for row in rows} == {"done"} else None

    await until("all four confirmations", all_done)
    mails = await asyncio.to_thread(read_mails, here.servers.maildir)
    sent = [mail.subject for mail in mails]
    assert [sum(case["reference"] in subject for subject in sent) for case in cases] == [1, 1, 1, 1]


@pytest.mark.timeout(180)
async def test_lookups_go_on_while_valkey_is_away(here: Town, stack: Stack) -> None:
    """Valkey killed under questions: every one is answered; after its return answers come from it again."""
    await here.council.load(["assets"])
    await here.start("serve")
    answers: list[int] = []
    try:
        for round_number in range(60):
            if round_number == 10:
                await stack.control("valkey", "kill")
            if round_number == 40:
                await stack.control("valkey", "start")
            status, body, _ = await here.lookup("asset-by-uprn", uprn=MONKS["uprn"])
            assert body["results"][0]["name"] == MONKS["name"]
            answers.append(status)
    finally:
        if len(answers) < 41:
            await stack.control("valkey", "start")
    assert set(answers) == {200}
    assert await here.health("admin") == 200

    async def from_redis() -> bool | None:
        _, _, headers = await here.lookup("asset-by-uprn", uprn=MONKS["uprn"])
        return True if re.search(r"\bhit\b", headers["Cache-Status"]) else None

    await until("a hit after the restart", from_redis, timeout_s=30)


@pytest.mark.timeout(180)
async def test_postgres_away_is_503_and_then_it_recovers(here: Town, stack: Stack) -> None:
    """Submits while Postgres is stopped get 503 with Retry-After; the same key afterwards makes exactly one case."""
    await here.start("serve")
    before = await here.submit()
    key = str(uuid4())
    await stack.control("postgres", "kill")
    try:
        status, body, headers = await here.call("POST", "/v1/cases", report(), Idempotency_Key=key)
        assert status == 503, body
        assert body["status"] == 503
        assert "Retry-After" in headers

        async def not_ready() -> bool | None:
            return True if await here.health("admin") == 503 else None

        await until("not ready", not_ready, timeout_s=20)
    finally:
        await stack.control("postgres", "start")

    async def submitted() -> dict[str, str] | None:
        status, body, _ = await here.call("POST", "/v1/cases", report(), Idempotency_Key=key)
        return body if status == 201 else None

    case = await until("the submit after the restart", submitted)
    assert (await here.call("GET", f"/v1/cases/{before['id']}"))[0] == 200
    rows = await here.sql("select reference from cases")
    assert {row["reference"] for row in rows} == {before["reference"], case["reference"]}
    await here.ready("admin")


@pytest.mark.timeout(180)
async def test_sigterm_lets_what_is_in_flight_end(here: Town) -> None:
    """A photo half sent when SIGTERM comes is still stored; new connections are refused; the exit code is 0."""
    serve = await here.start("serve")
    case = await here.submit()
    half_sent, go_on = asyncio.Event(), asyncio.Event()
    photo = png(300, 300)

    async def slowly() -> AsyncIterator[bytes]:
        yield photo[:200]
        half_sent.set()
        await go_on.wait()
        yield photo[200:]

    async def upload() -> int:
        url = f"{here.council.address('gateway')}/v1/cases/{case['id']}/attachments"
        headers = {"Authorization": f"Bearer {here.council.website_key}", "Content-Type": "image/png"}
        async with here.http.post(url, data=slowly(), headers=headers) as answer:
            return answer.status

    uploading = asyncio.create_task(upload())
    await half_sent.wait()
    stopping = asyncio.create_task(serve.stop())

    async def refused() -> bool | None:
        try:
            async with aiohttp.ClientSession() as fresh, fresh.get(here.council.address("gateway") + "/"):
                return None
        except aiohttp.ClientConnectionError:
            return True

    await until("new connections refused", refused, timeout_s=15)
    go_on.set()
    assert await uploading == 201
    await stopping
    assert serve.process.returncode == 0


@pytest.mark.timeout(180)
async def test_sigterm_of_a_worker_leaves_nothing_undone(here: Town) -> None:
    """A worker stopped in good order exits 0, and the next one goes on where it left: each case once."""
    await here.start("serve")
    first = await here.start("work")
    cases = {(await here.submit())["reference"]: 1 for _ in range(10)}
    await first.stop()
    assert first.process.returncode == 0
    cases |= {(await here.submit())["reference"]: 1 for _ in range(5)}
    await here.start("work")
    await here.delivered("street-team", cases)
