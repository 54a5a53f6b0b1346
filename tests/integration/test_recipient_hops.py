"""Two recipients that answer each other's changes change a case a few times, not for ever; people may always."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest_asyncio

from gateway.dev.addresses import Servers
from tests.integration.recipient_world import Remote, World, fence, world

TEAM, OTHER = "street-team", "recipient:contractor"


@pytest_asyncio.fixture(scope="module")
async def gateway(servers: Servers) -> AsyncIterator[World]:
    async with world(servers) as here:
        yield here


@pytest_asyncio.fixture
async def team(gateway: World) -> AsyncIterator[Remote]:
    async with gateway.remote(TEAM) as remote:
        yield remote


async def _team_says(gateway: World, team: Remote, case_id: UUID, state: str) -> int:
    """The team gets what is new, its program sets a state, and the poll brings it: how many cases that changed."""
    await team.recipient.apply_each(await gateway.events(case_id), fence(TEAM))
    await team.session.execute("update street.job set state = $1", state)
    return await team.poller.poll()


async def _other_says(gateway: World, case_id: UUID, status: str, hops: int) -> None:
    await gateway.cases.change(
        case_id, {"status": status}, actor=OTHER, origin=OTHER, correlation_id="5b0c1a7e", hops=hops
    )


async def _hops(gateway: World, case_id: UUID) -> list[int]:
    return [event.hops for event in await gateway.events(case_id)]


async def test_a_ping_pong_ends(gateway: World, team: Remote) -> None:
    """Each answer counts one hop more than what it answers; the fourth is refused, remembered and changes nothing."""
    case = await gateway.report()
    await _other_says(gateway, case.id, "in_progress", 1)
    assert await _team_says(gateway, team, case.id, "done") == 1
    await _other_says(gateway, case.id, "in_progress", 3)
    assert await _team_says(gateway, team, case.id, "no action") == 0
    assert await team.poller.poll() == 0
    assert await _hops(gateway, case.id) == [0, 1, 2, 3]
    assert (await gateway.cases.read(case.id)).status == "in_progress"
    assert team.count("poll_rows_total", recipient=TEAM, outcome="refused") == 1
    refused = await gateway.pool.fetchval("select count(*) from inbox where outcome = 'refused:HopLimit'")
    assert refused == 1


async def test_a_recipient_may_change_its_own_mind_as_often_as_it_likes(gateway: World, team: Remote) -> None:
    """Nothing of ours lies between its changes, so none is the answer to another."""
    case = await gateway.report()
    for state in ("doing", "done", "doing", "done", "no action"):
        assert await _team_says(gateway, team, case.id, state) == 1
    assert await _hops(gateway, case.id) == [0, 1, 1, 1, 1, 1]


async def test_people_may_pass_a_case_to_and_fro(gateway: World, team: Remote) -> None:
    """What comes hours later is no program's answer: it counts from the beginning."""
    case = await gateway.report()
    await _other_says(gateway, case.id, "in_progress", 3)
    await gateway.pool.execute("update case_event set at = at - interval '2 hours' where case_id = $1", case.id)
    assert await _team_says(gateway, team, case.id, "done") == 1
    assert await _hops(gateway, case.id) == [0, 3, 1]


async def test_an_officer_ends_the_count(gateway: World, team: Remote) -> None:
    """After a person's change, the next answer is the first."""
    case = await gateway.report()
    await _other_says(gateway, case.id, "in_progress", 3)
    await gateway.note(case.id, "I asked both.")
    assert await _team_says(gateway, team, case.id, "done") == 1
    assert await _hops(gateway, case.id) == [0, 3, 0, 1]
