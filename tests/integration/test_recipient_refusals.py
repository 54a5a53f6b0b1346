"""What a recipient refuses, or while it is away: a bad row fails alone, and nobody's fault is blamed on a case."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from gateway.dev.addresses import Servers
from streams.errors import Misconfigured, Rejected, Retryable, Unavailable
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.recipient_world import Remote, World, errors_of, fence, jobs, world

TEAM = "street-team"


@pytest_asyncio.fixture(scope="module")
async def gateway(servers: Servers) -> AsyncIterator[World]:
    async with world(servers) as here:
        yield here


@pytest_asyncio.fixture
async def team(gateway: World) -> AsyncIterator[Remote]:
    async with gateway.remote(TEAM) as remote:
        yield remote


async def test_a_row_that_does_not_map_is_named_alone(gateway: World, team: Remote) -> None:
    """A site name too long for the team's column parks its own case at that column; the others are written."""
    good = [await gateway.report() for _ in range(3)]
    bad = await gateway.report(asset={"uprn": "60001450", "name": "x" * 121})
    events = await gateway.events(good[0].id, bad.id, good[1].id, good[2].id)
    errors = await team.recipient.apply_each(events, fence(TEAM))
    (error,) = errors.values()
    assert isinstance(error, Rejected)
    assert (error.field, error.reason, error.case_id) == ("site_name", "is longer than 120 characters", bad.id)
    assert [job["gateway_ref"] for job in await jobs(team)] == sorted(case.reference for case in good)
    assert (await gateway.link(TEAM, bad.id))["state"] == "parked"
    assert team.count("mapping_field_errors_total", recipient=TEAM, field="site_name") == 1


async def test_a_row_that_the_database_refuses_is_found_by_halving(gateway: World, team: Remote) -> None:
    """Constraints we cannot know, broken by 3 of 40 rows: those are named, and 37 are written in one transaction."""
    await team.session.execute(
        "alter table street.job add constraint job_where check (where_exactly is distinct from 'on the roof')"
    )
    cases = [await gateway.report() for _ in range(40)]
    bad = {7, 8, 31}
    for number in bad:
        place = {"easting": 518225, "northing": 104730, "description": "on the roof"}
        cases[number] = await gateway.report(location=place)
    errors = await team.recipient.apply_each(await gateway.events(*(case.id for case in cases)), fence(TEAM))
    assert len(errors) == 3
    for error in errors.values():
        assert isinstance(error, Rejected)
        assert error.field == "job_where"
        assert error.reason == "breaks a rule of the recipient's table (23514, constraint job_where)"
    assert {error.case_id for error in errors.values() if isinstance(error, Rejected)} == {cases[n].id for n in bad}
    assert len(await jobs(team)) == 37


async def test_a_refused_newest_event_leaves_the_older_one_written(gateway: World, team: Remote) -> None:
    """The last event of a case fails, the one before is sound: that one is written, and only the last is named."""
    await team.session.execute("alter table street.job add check (details not like '%roof%')")
    case = await gateway.report()
    await gateway.note(case.id, "Second note.")
    await gateway.note(case.id, "It is on the roof.")
    other = await gateway.report()
    errors = await errors_of(team, await gateway.events(case.id, other.id))
    assert list(errors) == [3]
    by_reference = {job["gateway_ref"]: job for job in await jobs(team)}
    assert by_reference[case.reference]["gateway_version"] == 2
    assert by_reference[other.reference]["gateway_version"] == 1
    link = await gateway.link(TEAM, case.id)
    assert (link["state"], link["version"], link["remote_id"]) == (
        "parked",
        3,
        str(by_reference[case.reference]["job_no"]),
    )


async def test_a_rule_that_waits_for_the_commit_is_checked_at_once(gateway: World, team: Remote) -> None:
    """A deferred constraint names its row, and does not fail the commit of everybody else's."""
    await team.session.execute(
        "alter table street.job drop constraint job_job_type_fkey,"
        " add constraint job_known foreign key (job_type) references street.job_type deferrable initially deferred;"
        "delete from street.job_type where code = 'DOG_FOULING'"
    )
    fouling, litter = await gateway.report(category="dog-fouling"), await gateway.report()
    errors = await team.recipient.apply_each(await gateway.events(fouling.id, litter.id), fence(TEAM))
    (error,) = errors.values()
    assert isinstance(error, Rejected)
    assert error.field == "job_known"
    assert [job["gateway_ref"] for job in await jobs(team)] == [litter.reference]


async def test_an_error_of_the_recipient_never_quotes_the_row(gateway: World, team: Remote) -> None:
    """The recipient's trigger raises with the resident's name in its text: ours has the SQLSTATE alone."""
    await team.session.execute(
        "create function street.fussy() returns trigger language plpgsql as $$ begin"
        " raise exception 'no job for %', new.reporter; end $$;"
        "create trigger fussy before insert on street.job for each row execute function street.fussy();"
    )
    case = await gateway.report()
    (error,) = (await errors_of(team, await gateway.events(case.id))).values()
    assert str(error) == "was refused by the recipient's own rules (P0001)"


async def test_a_row_that_the_recipient_swallows_is_not_called_applied(gateway: World, team: Remote) -> None:
    """A trigger that silently keeps nothing makes the case rejected, not lost."""
    await team.session.execute(
        "create function street.drop() returns trigger language plpgsql as $$ begin return null; end $$;"
        "create trigger dropped before insert on street.job for each row execute function street.drop();"
    )
    case = await gateway.report()
    (error,) = (await errors_of(team, await gateway.events(case.id))).values()
    assert str(error) == "the recipient's table did not keep the row"


async def test_a_row_that_someone_holds_makes_only_its_case_wait(gateway: World, team: Remote) -> None:
    """A clerk's open transaction on one job: that case is tried again later, and nobody else's waits for the clerk."""
    held, free = await gateway.report(), await gateway.report()
    await errors_of(team, await gateway.events(held.id, free.id))
    await gateway.note(held.id, "More.")
    await gateway.note(free.id, "More.")
    events = await gateway.events(held.id, free.id)
    async with team.session.transaction():
        await team.session.execute("select from street.job where gateway_ref = $1 for update", held.reference)
        errors = await team.recipient.apply_each(events, fence(TEAM))
    assert {error.case_id for error in errors.values() if isinstance(error, Retryable)} == {held.id}
    versions = {job["gateway_ref"]: job["gateway_version"] for job in await jobs(team)}
    assert versions == {held.reference: 1, free.reference: 2}
    assert await errors_of(team, events) == {}


def trigger(body: str) -> str:
    """A rule of the recipient's own people about jobs on the roof."""
    return (
        "create function street.odd() returns trigger language plpgsql as $$ begin"
        f" if new.where_exactly = 'on the roof' then {body}; end if; return new; end $$;"
        "create trigger odd before insert or update on street.job for each row execute function street.odd();"
    )


async def roof_among(gateway: World, others: int) -> tuple[UUID, list[CaseEvent]]:
    """One case that the rule is about, between others; and the events of all of them."""
    cases = [await gateway.report() for _ in range(others)]
    odd = await gateway.report(location={"easting": 518225, "northing": 104730, "description": "on the roof"})
    cases.insert(others // 2, odd)
    return odd.id, await gateway.events(*(case.id for case in cases))


@pytest.mark.parametrize("state", ["UE001", "45000", "27000", "38001", "39P01", "XX000"])
async def test_an_unusual_error_of_a_trigger_is_the_rows(gateway: World, team: Remote, state: str) -> None:
    """Whatever SQLSTATE a trigger raises, its case alone is tried again, and at last parked; the others are written."""
    await team.session.execute(trigger(f"raise exception 'not for %', new.reporter using errcode = '{state}'"))
    odd, events = await roof_among(gateway, 6)
    (error,) = (await team.recipient.apply_each(events, fence(TEAM))).values()
    assert type(error) is Retryable
    assert (error.case_id, error.reason) == (odd, f"the recipient's database failed at the row ({state})")
    assert len(await jobs(team)) == 6


async def test_a_row_that_takes_too_long_holds_up_only_its_case(gateway: World) -> None:
    """A trigger that hangs on one row among many is found within the deadline; alone, it still blames its case."""
    async with gateway.remote(TEAM, statement_s=1.0) as team:
        await team.session.execute(trigger("perform pg_sleep(20)"))
        odd, events = await roof_among(gateway, 12)
        (error,) = (await team.recipient.apply_each(events, fence(TEAM))).values()
        assert type(error) is Retryable
        assert (error.case_id, error.reason) == (odd, "the recipient's database did not finish the row in time")
        assert len(await jobs(team)) == 12
        await gateway.note(odd, "More.")
        alone = await team.recipient.apply_each(await gateway.events(odd), fence(TEAM))
        assert [(type(error), error.case_id) for error in alone.values()] == [(Retryable, odd)] * 2
        await team.session.execute("drop trigger odd on street.job")
        assert await team.recipient.apply_each(await gateway.events(odd), fence(TEAM)) == {}
        assert len(await jobs(team)) == 13


async def test_what_does_not_open_is_named(gateway: World, team: Remote) -> None:
    """The sealed part of another case, and a case without any key: each is rejected alone, with nothing written."""
    good, swapped, keyless = [await gateway.report() for _ in range(3)]
    events = await gateway.events(good.id, swapped.id, keyless.id)
    await gateway.pool.execute("delete from case_key where case_id = $1", keyless.id)
    events[1] = case_event(case_id=swapped.id, reference=swapped.reference, sealed=events[0].sealed)
    errors = await team.recipient.apply_each(events, fence(TEAM))
    assert {str(error) for error in errors.values()} == {
        "sealed: the personal part does not open with the case's key",
        "sealed: the case has no key, and no record of its erasure",
    }
    assert [job["gateway_ref"] for job in await jobs(team)] == [good.reference]


async def test_the_consumer_is_told_the_case_to_blame(gateway: World, team: Remote) -> None:
    """apply() raises for one case after the others were written, so that nobody else is handed out or parked again."""
    good = await gateway.report()
    bad = await gateway.report(asset={"uprn": "60001450", "name": "x" * 121})
    with pytest.raises(Rejected) as caught:
        await team.recipient.apply(await gateway.events(bad.id, good.id), fence(TEAM))
    assert caught.value.case_id == bad.id
    assert [job["gateway_ref"] for job in await jobs(team)] == [good.reference]


async def test_a_wrong_key_ring_stops_the_connector_instead_of_parking(gateway: World, team: Remote) -> None:
    """One key that does not open is that case's misfortune; when none opens, a person has to mend the ring."""
    cases = [await gateway.report() for _ in range(3)]
    events = await gateway.events(*(case.id for case in cases))
    spoil = "update case_key set wrapped = 'spoilt' where case_id = any($1)"
    await gateway.pool.execute(spoil, [cases[0].id])
    (error,) = (await team.recipient.apply_each(events, fence(TEAM))).values()
    assert str(error) == "sealed: the key ring does not open the case's key"
    assert len(await jobs(team)) == 2
    await gateway.pool.execute(spoil, [case.id for case in cases])
    with pytest.raises(Misconfigured, match="the key ring opens none"):
        await team.recipient.apply_each(events, fence(TEAM))


async def test_a_recipient_that_is_away_blames_no_case(gateway: World, team: Remote) -> None:
    """No connection, a broken one and a killed session are Unavailable; afterwards the same batch goes through."""
    case = await gateway.report()
    events = await gateway.events(case.id)
    name = await team.session.fetchval("select current_database()")
    admin = await asyncpg.connect(gateway.servers.postgres_url)
    try:
        await admin.execute(f'alter database "{name}" allow_connections false')
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        with pytest.raises(Unavailable) as caught:
            await errors_of(team, events)
        assert name not in caught.value.reason
    finally:
        await admin.execute(f'alter database "{name}" allow_connections true')
        await admin.close()
    assert await errors_of(team, events) == {}


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("alter table street.job rename to work_item", "the recipient has no table 'street.job'"),
        (
            "alter table street.job drop constraint job_gateway_ref_key",
            "'street.job' needs a unique index on 'gateway_r",
        ),
        ("alter table street.job alter site_name type varchar(60)", "max_chars: is more than the 60 characters"),
        ("alter table street.job add ward text not null", "nothing fills the column 'ward', which must not be null"),
        (
            "drop table silogate_fence",
            "lacks the table silogate_fence, which its owner makes once: create table if not",
        ),
    ],
)
async def test_a_table_that_does_not_fit_stops_the_connector(gateway: World, sql: str, reason: str) -> None:
    """What only a person can mend is Misconfigured, with the reason in their words."""
    with pytest.raises(Misconfigured) as caught:
        async with gateway.remote(TEAM, extra_sql=sql) as remote:
            await errors_of(remote, await gateway.events((await gateway.report()).id))
    assert reason in caught.value.reason


async def test_a_table_changed_while_in_use_is_read_again(gateway: World, team: Remote) -> None:
    """The recipient's supplier widens a column at midday: one attempt fails, and then the new table is used."""
    first, second = await gateway.report(), await gateway.report()
    await errors_of(team, await gateway.events(first.id))
    await team.session.execute("alter table street.job alter gateway_version type numeric(12)")
    for _ in range(3):
        try:
            assert await errors_of(team, await gateway.events(second.id)) == {}
            break
        except (Unavailable, Misconfigured):
            continue
    assert len(await jobs(team)) == 2
