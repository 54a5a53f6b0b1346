"""What a recipient's people do comes back to the case: once, in its meaning, never against a newer word of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from gateway.dev.addresses import Servers
from streams import failpoints
from streams.cases.cases import Case
from streams.errors import Misconfigured, Unavailable
from tests.integration.recipient_world import Remote, World, fence, world

TEAM = "street-team"
SOURCE = "recipient:street-team"


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


async def delivered(gateway: World, team: Remote, **changed: Any) -> Case:
    """A case that the team has in its table."""
    case = await gateway.report(**changed)
    await push(gateway, team, case)
    return case


async def push(gateway: World, team: Remote, case: Case) -> None:
    assert not await team.recipient.apply_each(await gateway.events(case.id), fence(TEAM))


async def set_state(team: Remote, case: Case, state: str) -> None:
    """A member of the team changes the job in their own program."""
    await team.session.execute("update street.job set state = $2 where gateway_ref = $1", case.reference, state)


async def status(gateway: World, case: Case) -> tuple[str, int]:
    now = await gateway.cases.read(case.id)
    return now.status, now.version


async def outcomes(gateway: World) -> list[str]:
    rows = await gateway.pool.fetch("select outcome from inbox where source = $1 order by seen_at, outcome", SOURCE)
    return [row["outcome"] for row in rows]


async def test_a_status_comes_back_on_the_case(gateway: World, team: Remote) -> None:
    """Done at the team is fixed on the case, as an event with its origin, one hop, and the case's correlation id."""
    case = await delivered(gateway, team)
    await set_state(team, case, "done")
    assert await team.poller.poll() == 1
    assert await status(gateway, case) == ("fixed", 2)
    first, second = await gateway.events(case.id)
    assert (second.origin, second.hops, second.status) == (SOURCE, 1, "fixed")
    assert second.correlation_id == first.correlation_id
    assert (await gateway.link(TEAM, case.id))["remote_status"] == "done"


async def test_nothing_is_taken_twice(gateway: World, team: Remote) -> None:
    """Every poll reads the overlap again, and none of it changes the case again."""
    case = await delivered(gateway, team)
    await set_state(team, case, "doing")
    assert [await team.poller.poll() for _ in range(4)] == [1, 0, 0, 0]
    assert await status(gateway, case) == ("in_progress", 2)
    assert team.count("poll_rows_total", recipient=TEAM, outcome="changed") == 1


async def test_our_own_push_is_no_news(gateway: World, team: Remote) -> None:
    """We write to the row and so it changed: its old status does not undo the officer's newer one."""
    case = await delivered(gateway, team)
    await set_state(team, case, "doing")
    await team.poller.poll()
    await gateway.change(case.id, status="no_further_action")
    await gateway.note(case.id, "Closed by telephone.")
    await push(gateway, team, case)
    assert await team.poller.poll() == 0
    assert await status(gateway, case) == ("no_further_action", 4)
    assert "unchanged" in await outcomes(gateway)


async def test_a_status_set_before_the_first_poll_is_compared_with_what_we_wrote(gateway: World, team: Remote) -> None:
    """Ours moved on and the team's did not: the first poll ever does not take the case back."""
    case = await delivered(gateway, team)
    await gateway.change(case.id, status="in_progress")
    await push(gateway, team, case)
    assert await team.poller.poll() == 0
    assert await status(gateway, case) == ("in_progress", 2)


async def test_the_recipient_wins_when_both_changed(gateway: World, team: Remote) -> None:
    """The status is the team's: what they set last counts, and the officer's word before it stays in the history."""
    case = await delivered(gateway, team)
    await gateway.change(case.id, status="in_progress")
    await set_state(team, case, "no action")
    assert await team.poller.poll() == 1
    assert await status(gateway, case) == ("no_further_action", 3)
    assert [event.status for event in await gateway.events(case.id)] == ["open", "in_progress", "no_further_action"]


async def test_a_round_trip_settles(gateway: World, team: Remote) -> None:
    """The change that came from the team goes out as an echo, and the next poll finds nothing new."""
    case = await delivered(gateway, team)
    await set_state(team, case, "done")
    for _ in range(3):
        await team.poller.poll()
        await push(gateway, team, case)
    assert await status(gateway, case) == ("fixed", 2)
    row = await team.session.fetchrow("select state, gateway_version from street.job")
    assert tuple(row) == ("done", 2)


async def test_an_unknown_code_is_kept_and_counted_not_guessed(gateway: World, team: Remote) -> None:
    """A code that the declaration lacks leaves the case alone and says so in the inbox and the metrics."""
    await team.session.execute("alter table street.job drop constraint job_state_check")
    case = await delivered(gateway, team)
    await set_state(team, case, "on hold")
    assert await team.poller.poll() == 0
    assert await status(gateway, case) == ("open", 1)
    assert await outcomes(gateway) == ["unmapped:on hold"]
    assert team.count("poll_rows_total", recipient=TEAM, outcome="unmapped") == 1
    await set_state(team, case, "new")
    assert await team.poller.poll() == 0
    await set_state(team, case, "done")
    assert await team.poller.poll() == 1
    assert await status(gateway, case) == ("fixed", 2)


async def test_jobs_that_are_not_ours_are_left_alone(gateway: World, team: Remote) -> None:
    """Work raised by telephone has no reference; a reference we do not know is noted once."""
    insert = (
        "insert into street.job (gateway_ref, raised_at, job_type, site_name, easting, northing, details)"
        " values ($1, now(), 'GENERAL', 'x', 1, 1, 'x')"
    )
    await team.session.execute(insert, None)
    await team.session.execute(insert, "RAP-0000-0000")
    assert [await team.poller.poll() for _ in range(2)] == [0, 0]
    assert await outcomes(gateway) == ["unknown_case"]


async def test_pages_are_bounded_and_complete(gateway: World) -> None:
    """Seven changes with one and the same time of change are read in pages of two, none left out."""
    async with gateway.remote(TEAM, yaml={"overlap: 60s": "overlap: 60s, page: 2"}) as team:
        cases = [await delivered(gateway, team) for _ in range(7)]
        await team.session.execute(
            "alter table street.job disable trigger job_stamp;"
            "update street.job set state = 'done', modified_at = '2026-11-22T10:00:00Z';"
            "alter table street.job enable trigger job_stamp"
        )
        assert await team.poller.poll() == 7
        assert {(await gateway.cases.read(case.id)).status for case in cases} == {"fixed"}
        assert await team.poller.poll() == 0


async def test_a_late_commit_is_found_by_the_overlap(gateway: World, team: Remote) -> None:
    """A transaction that began before the last poll and committed after it is read, though its time is older."""
    early, late = await delivered(gateway, team), await delivered(gateway, team)
    clerk = await asyncpg.connect(team.url)
    try:
        transaction = clerk.transaction()
        await transaction.start()
        await clerk.execute("update street.job set state = 'doing' where gateway_ref = $1", late.reference)
        await set_state(team, early, "done")
        assert await team.poller.poll() == 1
        await transaction.commit()
    finally:
        await clerk.close()
    assert await team.poller.poll() == 1
    assert await status(gateway, late) == ("in_progress", 2)


class Died(BaseException):
    """The end of the process, which nothing may take for a case's fault."""


@pytest.mark.parametrize("place", ["cases.before_commit", "cases.after_commit", "poller.before_settle"])
async def test_dying_anywhere_takes_every_change_once(
    gateway: World, team: Remote, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a poll dies, the next one finishes its page: each change once, and the position after it."""
    cases = [await delivered(gateway, team) for _ in range(3)]
    for case in cases:
        await set_state(team, case, "done")

    def reach(name: str) -> None:
        if name == place:
            raise Died

    with monkeypatch.context() as armed:
        armed.setattr("streams.cases.cases.reach", reach)
        armed.setattr("streams.recipients.poller.reach", reach)
        with pytest.raises(Died):
            await team.poller.poll()
    assert await gateway.pool.fetchval("select count(*) from poll_position") == 0
    await team.poller.poll()
    assert [await status(gateway, case) for case in cases] == [("fixed", 2)] * 3
    assert await gateway.pool.fetchval("select count(*) from poll_position") == 1
    assert {(await gateway.link(TEAM, case.id))["remote_status"] for case in cases} == {"done"}


async def test_a_row_whose_link_is_not_written_yet_is_read_again(gateway: World, team: Remote) -> None:
    """Between the recipient's commit and ours the poller waits for the link, and does not pass the row."""
    case = await delivered(gateway, team)
    await gateway.pool.execute("delete from xref")
    await set_state(team, case, "done")
    assert await team.poller.poll() == 0
    assert await gateway.pool.fetchval("select count(*) from poll_position") == 0
    assert await outcomes(gateway) == []
    await push(gateway, team, case)
    assert await team.poller.poll() == 1
    assert await status(gateway, case) == ("fixed", 2)


async def test_a_lost_link_does_not_silence_a_case(gateway: World) -> None:
    """Without a link for longer than the overlap, the row is judged by what we would have written."""
    async with gateway.remote(TEAM, yaml={"overlap: 60s": "overlap: 1ms"}) as team:
        same, moved = await delivered(gateway, team), await delivered(gateway, team)
        await gateway.pool.execute("delete from xref")
        await set_state(team, moved, "doing")
        assert await team.poller.poll() == 1
        assert await status(gateway, same) == ("open", 1)
        assert await status(gateway, moved) == ("in_progress", 2)


async def test_a_change_in_between_is_judged_again(gateway: World, team: Remote, monkeypatch: Any) -> None:
    """The case moves on between reading and changing: nothing is overwritten blindly, and nothing is lost."""
    case = await delivered(gateway, team)
    await set_state(team, case, "done")
    change = gateway.cases.change

    async def late(*arguments: Any, **named: Any) -> Case:
        monkeypatch.setattr(gateway.cases, "change", change)
        await gateway.note(case.id, "In this very moment.")
        return await change(*arguments, **named)

    monkeypatch.setattr(gateway.cases, "change", late)
    assert await team.poller.poll() == 0
    assert await gateway.pool.fetchval("select count(*) from poll_position") == 0
    assert await team.poller.poll() == 1
    assert await status(gateway, case) == ("fixed", 3)


async def test_an_erased_case_is_refused_and_noted(gateway: World, team: Remote) -> None:
    """A case whose key is destroyed cannot be rewritten: the change is kept in the inbox and stops nothing else."""
    gone, here = await delivered(gateway, team), await delivered(gateway, team)
    await gateway.erase(gone.id)
    await set_state(team, gone, "done")
    await set_state(team, here, "done")
    assert await team.poller.poll() == 1
    assert sorted(await outcomes(gateway)) == ["refused:Erased", "taken"]


@pytest.mark.parametrize(
    ("spoil", "outcome"),
    [
        ("delete from case_key where case_id = $1", "refused:KeyMissing"),
        ("update case_key set wrapped = 'spoilt' where case_id = $1", "refused:"),
    ],
)
async def test_a_case_that_does_not_open_stops_nobody_else(
    gateway: World, team: Remote, spoil: str, outcome: str
) -> None:
    """A key that is missing or altered is its own case's misfortune: noted once, the page and the position go on."""
    shut, sound = await delivered(gateway, team), await delivered(gateway, team)
    await gateway.pool.execute(spoil, shut.id)
    await set_state(team, shut, "done")
    await set_state(team, sound, "done")
    assert [await team.poller.poll() for _ in range(2)] == [1, 0]
    refused, taken = sorted(await outcomes(gateway))
    assert (refused.startswith(outcome), taken) == (True, "taken")
    assert await status(gateway, sound) == ("fixed", 2)
    assert team.count("poll_rows_total", recipient=TEAM, outcome="refused") == 1
    assert await gateway.pool.fetchval("select count(*) from poll_position") == 1


@pytest.mark.parametrize("moment", ["infinity", "20260-11-22T10:00:00Z", "9999-12-31T23:59:59Z", "-infinity"])
async def test_a_row_dated_in_the_future_hides_nothing(gateway: World, team: Remote, moment: str) -> None:
    """A mistyped year is counted and waits for its time; what the team changes now still comes back."""
    odd, first, second = [await delivered(gateway, team) for _ in range(3)]
    await team.session.execute(
        "alter table street.job disable trigger job_stamp;"
        f"update street.job set state = 'done', modified_at = '{moment}' where gateway_ref = '{odd.reference}';"
        "alter table street.job enable trigger job_stamp"
    )
    await set_state(team, first, "done")
    assert await team.poller.poll() == 1
    await set_state(team, second, "done")
    assert await team.poller.poll() == 1
    assert (await status(gateway, odd))[0] == "open"
    assert team.count("poll_rows_ahead", recipient=TEAM) == (0 if moment == "-infinity" else 1)
    await set_state(team, odd, "doing")
    assert await team.poller.poll() == 1
    assert team.count("poll_rows_ahead", recipient=TEAM) == 0


async def test_an_error_nobody_thought_of_does_not_end_the_poller(gateway: World) -> None:
    """Whatever one poll stumbles over, it is counted, and polling goes on: the worker's other tasks never notice."""
    async with gateway.remote(TEAM, yaml={"every: 2s": "every: 50ms"}) as team:
        case = await delivered(gateway, team)
        await set_state(team, case, "done")
        stop = asyncio.Event()
        failpoints.arm("poller.before_settle:raise")
        running = asyncio.create_task(team.poller.run(stop))
        await counted(team, "unavailable")
        await counted(team, "done")
        stop.set()
        async with asyncio.timeout(10):
            await running
        assert await status(gateway, case) == ("fixed", 2)


async def test_one_poller_works_at_a_time(gateway: World, team: Remote) -> None:
    """A second worker finds the recipient being polled and leaves it alone."""
    case = await delivered(gateway, team)
    await set_state(team, case, "done")
    async with gateway.pool.acquire() as other:
        await other.execute("select pg_advisory_lock($1, $2)", *team.poller.lock)
        assert await team.poller.poll() == 0
    assert await team.poller.poll() == 1


async def test_polling_goes_on_until_told_to_stop(gateway: World) -> None:
    """run() brings a change back within its period, outlives a recipient that is away, and ends when told."""
    async with gateway.remote(TEAM, yaml={"every: 2s": "every: 50ms"}) as team:
        case = await delivered(gateway, team)
        stop = asyncio.Event()
        running = asyncio.create_task(team.poller.run(stop))
        await team.session.execute("alter table street.job rename column state to stage")
        await counted(team, "misconfigured")
        await team.session.execute("alter table street.job rename column stage to state")
        await set_state(team, case, "done")
        async with asyncio.timeout(30):
            while await status(gateway, case) != ("fixed", 2):
                await asyncio.sleep(0.02)
        stop.set()
        async with asyncio.timeout(10):
            await running
        assert team.metrics.get_sample_value("silogate_poll_last_done_timestamp_seconds", {"recipient": TEAM})


async def counted(team: Remote, outcome: str) -> None:
    async with asyncio.timeout(30):
        while not team.count("polls_total", recipient=TEAM, outcome=outcome):
            await asyncio.sleep(0.02)


async def test_what_the_recipient_says_is_told_apart(gateway: World, team: Remote) -> None:
    """A renamed column is a matter for a person, a lost connection is not; neither moves the position."""
    case = await delivered(gateway, team)
    await set_state(team, case, "done")
    await team.session.execute("alter table street.job rename column state to stage")
    with pytest.raises(Misconfigured):
        await team.poller.poll()
    await team.session.execute("alter table street.job rename column stage to state")
    name = await team.session.fetchval("select current_database()")
    admin = await asyncpg.connect(gateway.servers.postgres_url)
    try:
        await admin.execute(f'alter database "{name}" allow_connections false')
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        with pytest.raises(Unavailable):
            await team.poller.poll()
    finally:
        await admin.execute(f'alter database "{name}" allow_connections true')
        await admin.close()
    assert await team.poller.poll() == 1


async def test_the_contractors_uuids_page_too(gateway: World) -> None:
    """The id that breaks ties may be of any type; its order is the recipient's own."""
    async with gateway.remote("contractor", yaml={"overlap: 60s": "overlap: 60s, page: 1"}) as remote:
        cases = [await gateway.report(category="vandalism") for _ in range(3)]
        events = await gateway.events(*(case.id for case in cases))
        assert not await remote.recipient.apply_each(events, fence("contractor"))
        await remote.session.execute("update fault_log set status_code = 'COMPLETE'")
        assert await remote.poller.poll() == 3
        position = await gateway.pool.fetchrow("select changed_at, now() - changed_at as ago from poll_position")
        assert position["ago"] < timedelta(minutes=5)
