"""Cases in a recipient's own Postgres database: exactly once in effect, a bad row alone, only what the map names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

import asyncpg
import pytest
import pytest_asyncio

from gateway.dev.addresses import Servers
from streams import failpoints
from streams.errors import Fenced
from streams.events import CaseEvent
from streams.failpoints import Injected
from streams.testing import case_event
from tests.integration.recipient_world import Remote, World, errors_of, fence, jobs, world

TEAM = "street-team"
WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


@pytest_asyncio.fixture(scope="module")
async def gateway(servers: Servers) -> AsyncIterator[World]:
    async with world(servers) as here:
        yield here


@pytest_asyncio.fixture
async def team(gateway: World) -> AsyncIterator[Remote]:
    async with gateway.remote(TEAM) as remote:
        yield remote


@pytest.fixture(autouse=True)
def nothing_armed() -> Iterator[None]:
    yield
    failpoints.disarm()


async def until_waiting(remote: Remote, sessions: int) -> None:
    """Return once so many sessions wait for a lock in the recipient's database."""
    # a session of its own: inside a transaction these statistics stand still
    watcher = await asyncpg.connect(remote.url)
    try:
        async with asyncio.timeout(20):
            while await watcher.fetchval(WAITING) < sessions:
                await asyncio.sleep(0.01)
    finally:
        await watcher.close()


async def test_a_case_arrives_in_the_teams_own_words(gateway: World, team: Remote) -> None:
    """Every mapped column holds what the field table says, in the team's types and codes."""
    case = await gateway.report()
    assert await errors_of(team, await gateway.events(case.id)) == {}
    (job,) = await jobs(team)
    assert job["gateway_ref"] == case.reference
    assert job["gateway_version"] == 1
    assert (job["job_type"], job["state"], job["priority"]) == ("LITTER_TOILET", "new", 3)
    assert (job["easting"], job["northing"]) == (Decimal("518225.00"), Decimal("104730.00"))
    assert (job["site_uprn"], job["site_name"]) == (60001449, "Monks Recreation Ground")
    assert (job["where_exactly"], job["details"]) == ("by the gate", "The bins are full.")
    assert (job["reporter"], job["crew"], job["raised_at"]) == ("Ada Whitfield", None, case.created_at)
    link = await gateway.link(TEAM, case.id)
    assert (link["remote_id"], link["version"], link["state"]) == (str(job["job_no"]), 1, "applied")
    assert (link["mapping"], link["remote_status"]) == (team.database.mapping.digest, "new")


async def test_the_contractor_gets_degrees_codes_and_no_address(gateway: World) -> None:
    """Another system, other types: WGS84, fault codes, local time, and of the resident name and telephone alone."""
    async with gateway.remote("contractor") as remote:
        case = await gateway.report(category="blocked")
        await remote.recipient.on_assigned(fence("contractor"))
        assert not await remote.recipient.apply_each(await gateway.events(case.id), fence("contractor"))
        fault = dict(await remote.session.fetchrow("select * from fault_log"))
    assert (fault["fault_code"], fault["status_code"]) == ("BLK", "LOGGED")
    assert (fault["lat"], fault["lon"]) == (Decimal("50.830043"), Decimal("-0.322648"))
    assert (fault["asset_ref"], fault["site"]) == ("UPRN60001449", "MONKS RECREATION GROUND")
    assert (fault["caller_name"], fault["caller_phone"]) == ("Ada Whitfield", "01632 960001")
    assert abs(fault["logged_on"].replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=5)
    assert not any("ada@example.org" in str(value) for value in fault.values())


async def test_redelivery_changes_nothing(gateway: World, team: Remote) -> None:
    """The same events again, in any mixture and order, leave the row as it was, to its time of change."""
    case = await gateway.report()
    await gateway.note(case.id, "Still full on Tuesday.")
    events = await gateway.events(case.id)
    await errors_of(team, events)
    before = await jobs(team)
    shuffled = Random(7)
    for _ in range(5):
        again = events + events[:1]
        shuffled.shuffle(again)
        assert await errors_of(team, again) == {}
    assert await jobs(team) == before
    assert (await gateway.link(TEAM, case.id))["version"] == 2
    assert team.count("recipient_events_total", recipient=TEAM, outcome="written") == 1


async def test_an_older_version_never_overwrites(gateway: World, team: Remote) -> None:
    """A replayed first version after the second is settled without an effect."""
    case = await gateway.report()
    await gateway.note(case.id, "Still full on Tuesday.")
    first, second = await gateway.events(case.id)
    await errors_of(team, [second])
    assert await errors_of(team, [first]) == {}
    (job,) = await jobs(team)
    assert (job["gateway_version"], job["details"]) == (2, "The bins are full.\n\nStill full on Tuesday.")


async def test_a_batch_is_coalesced_to_the_last_event(gateway: World, team: Remote) -> None:
    """Twenty changes of one case in a batch are one row written once."""
    await team.session.execute(
        "create table street.written (ref text, version bigint);"
        "create function street.note() returns trigger language plpgsql as $$ begin"
        " insert into street.written values (new.gateway_ref, new.gateway_version); return new; end $$;"
        "create trigger job_written after insert or update on street.job for each row execute function street.note();"
    )
    case = await gateway.report()
    for number in range(19):
        await gateway.note(case.id, f"Note {number}")
    assert await errors_of(team, await gateway.events(case.id)) == {}
    written = await team.session.fetch("select * from street.written")
    assert [tuple(row) for row in written] == [(case.reference, 20)]
    assert team.count("recipient_events_total", recipient=TEAM, outcome="settled") == 19


async def test_what_the_recipient_owns_is_written_once(gateway: World, team: Remote) -> None:
    """Status, priority and its own columns stay as its people set them, whatever we push."""
    case = await gateway.report()
    await errors_of(team, await gateway.events(case.id))
    await team.session.execute("update street.job set state = 'doing', priority = 1, crew = 'Northern'")
    await gateway.note(case.id, "It smells.")
    await gateway.change(case.id, status="fixed")
    assert await errors_of(team, await gateway.events(case.id)) == {}
    (job,) = await jobs(team)
    assert (job["state"], job["priority"], job["crew"], job["gateway_version"]) == ("doing", 1, "Northern", 3)
    assert job["details"].endswith("It smells.")


async def test_a_zombie_writes_nothing(gateway: World, team: Remote) -> None:
    """Once another process has taken the partition over, the former owner is fenced, in the recipient's database."""
    case = await gateway.report()
    events = await gateway.events(case.id)
    await team.recipient.on_assigned(fence(TEAM, 2))
    with pytest.raises(Fenced):
        await errors_of(team, events, epoch=1)
    with pytest.raises(Fenced):
        await team.recipient.on_assigned(fence(TEAM, 1))
    assert await jobs(team) == []
    assert await errors_of(team, events, epoch=2) == {}
    await team.recipient.on_assigned(fence(TEAM, 2))  # repeating the hook is harmless
    with pytest.raises(Fenced):
        await team.recipient.apply_each(events, fence(TEAM, 2, partitions=(0, 1)))


async def test_a_take_over_waits_for_the_transaction_it_interrupts(gateway: World) -> None:
    """The new owner's epoch lands only after the old one's open transaction has ended, so never do both write."""
    case = await gateway.report()
    (event,) = await gateway.events(case.id)
    async with gateway.remote(TEAM, lock_s=20) as remote:
        async with remote.session.transaction():
            await remote.session.execute("lock table street.job in access exclusive mode")
            slow = asyncio.create_task(remote.recipient.apply_each([event], fence(TEAM)))
            await until_waiting(remote, 1)
            taken = asyncio.create_task(remote.recipient.on_assigned(fence(TEAM, 2)))
            await until_waiting(remote, 2)
            assert not taken.done()
        assert await slow == {}
        await taken
        with pytest.raises(Fenced):
            await errors_of(remote, [event], epoch=1)


async def test_an_echo_is_not_pushed_back(gateway: World, team: Remote) -> None:
    """What the recipient itself changed only raises the version of its row; later changes of ours flow again."""
    case = await gateway.report()
    await errors_of(team, await gateway.events(case.id))
    await team.session.execute("update street.job set details = 'rewritten by the team', state = 'doing'")
    await gateway.cases.change(
        case.id, {"status": "in_progress"}, actor="x", origin="recipient:street-team", correlation_id="c" * 8
    )
    echo = (await gateway.events(case.id))[-1]
    assert await errors_of(team, [echo]) == {}
    (job,) = await jobs(team)
    assert (job["gateway_version"], job["details"]) == (2, "rewritten by the team")
    assert (await gateway.link(TEAM, case.id))["version"] == 2
    assert team.count("recipient_events_total", recipient=TEAM, outcome="echo") == 1
    await gateway.note(case.id, "More.")
    assert await errors_of(team, await gateway.events(case.id)) == {}
    (job,) = await jobs(team)
    assert (job["gateway_version"], job["details"]) == (3, "The bins are full.\n\nMore.")


async def test_an_echo_of_another_recipient_is_pushed(gateway: World, team: Remote) -> None:
    """Only what this very recipient caused is its echo."""
    case = await gateway.report()
    await gateway.cases.change(
        case.id, {"status": "in_progress"}, actor="x", origin="recipient:contractor", correlation_id="c" * 8
    )
    assert await errors_of(team, await gateway.events(case.id)) == {}
    (job,) = await jobs(team)
    assert (job["gateway_version"], job["state"]) == (2, "doing")


async def test_only_what_the_flow_gives_is_written(gateway: World) -> None:
    """Cases that are another recipient's are settled without a trace here."""

    def only_litter(event: CaseEvent, personal: object) -> bool:
        return bool(event.document["category"] == "litter")

    async with gateway.remote(TEAM, wanted=only_litter) as remote:
        mine, other = await gateway.report(), await gateway.report(category="vandalism")
        events = await gateway.events(mine.id, other.id)
        assert await errors_of(remote, [*events, case_event(case_type="abandoned-vehicle")]) == {}
        assert [job["gateway_ref"] for job in await jobs(remote)] == [mine.reference]
        assert await gateway.link(TEAM, other.id) == {}


async def test_an_erased_person_is_not_sent(gateway: World, team: Remote) -> None:
    """After erasure an event flows without its personal fields, and what the row held of them is overwritten."""
    case = await gateway.report()
    first = await gateway.events(case.id)
    await errors_of(team, first)
    await gateway.change(case.id, status="in_progress")
    events = await gateway.events(case.id)
    await gateway.erase(case.id)
    assert await errors_of(team, events) == {}
    (job,) = await jobs(team)
    assert (job["reporter"], job["details"], job["where_exactly"]) == (None, "", None)
    assert (job["site_name"], job["gateway_version"]) == ("Monks Recreation Ground", 2)


@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("recipient.before_transaction", False),
        ("recipient.before_commit", False),
        ("recipient.after_commit", True),
        ("recipient.after_xref", True),
    ],
)
async def test_dying_anywhere_and_redelivery_end_the_same(
    gateway: World, team: Remote, place: str, written: bool
) -> None:
    """Wherever the worker dies, the next delivery leaves one row, one link and no second write."""
    case = await gateway.report()
    events = await gateway.events(case.id)
    failpoints.arm(f"{place}:raise")
    with pytest.raises(Injected):
        await errors_of(team, events)
    assert len(await jobs(team)) == written
    before = await jobs(team)
    assert await errors_of(team, events) == {}
    assert len(await jobs(team)) == 1
    assert not written or await jobs(team) == before
    link = await gateway.link(TEAM, case.id)
    assert (link["state"], link["version"], link["remote_status"]) == ("applied", 1, "new")


async def test_a_hostile_text_is_only_a_text(gateway: World, team: Remote) -> None:
    """Quotes, statements, braces and emoji arrive as they were typed."""
    text = "'); drop table street.job; -- $1 {x} %s \\ 🚽 Ω"
    case = await gateway.report(notes=[{"text": text}])
    assert await errors_of(team, await gateway.events(case.id)) == {}
    assert (await jobs(team))[0]["details"] == text


async def test_two_workers_with_one_batch_write_it_once(gateway: World, team: Remote) -> None:
    """Overlapping batches at the same moment end in one row a case at its newest version, without a deadlock."""
    cases = [await gateway.report() for _ in range(30)]
    for case in cases[::2]:
        await gateway.note(case.id, "More.")
    events = await gateway.events(*(case.id for case in cases))
    backwards = list(reversed(events))
    results = await asyncio.gather(
        *(team.recipient.apply_each(batch, fence(TEAM)) for batch in (events, backwards, events[10:], backwards[5:]))
    )
    assert all(not errors for errors in results)
    versions = {job["gateway_ref"]: job["gateway_version"] for job in await jobs(team)}
    assert versions == {case.reference: 2 if n % 2 == 0 else 1 for n, case in enumerate(cases)}
