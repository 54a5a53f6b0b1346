"""What people do with parked cases: look, try one event or many again, rehearse, give up; each change is audited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from gateway.dev.addresses import Servers
from streams.consumer import replay
from streams.consumer.replay import NotTheHead, Rehearsed, Selection
from streams.errors import Rejected
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import Bench, Recorder, open_bench, until
from tests.integration.recipient_world import World, fence, jobs, world

TEAM = "street-team"


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


@dataclass
class Trail:
    """An audit log in memory; `broken`: nothing can be recorded."""

    broken: bool = False
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    async def record(self, *, actor: str, action: str, subject: str, **_: Any) -> None:
        if self.broken:
            raise ConnectionError
        self.rows.append((actor, action, subject))


@dataclass
class Lot:
    """Two parked cases of three events each at a consumer that refuses the versions in `refused`."""

    bench: Bench
    first: UUID
    second: UUID
    handler: Recorder
    refused: set[int]
    trail: Trail = field(default_factory=Trail)

    def of(self, case_id: UUID | None = None, **more: Any) -> Selection:
        return Selection(self.bench.group, case_id, **more)

    async def positions(self, case_id: UUID) -> list[int]:
        return [one.position for one in await replay.events(self.bench.pool, self.bench.group, case_id)]

    async def until_left(self, case_id: UUID, number: int) -> None:
        async with asyncio.timeout(20):
            while len(await self.positions(case_id)) != number:
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def lot(bench: Bench) -> AsyncIterator[Lot]:
    refused = {1, 2, 3}

    def behave(event: CaseEvent) -> None:
        if event.version in refused:
            raise Rejected("no such street", "usrn")

    handler = Recorder(behave)
    made = Lot(bench, uuid4(), uuid4(), handler, refused)
    async with bench.consuming(handler):
        for case_id in (made.first, made.second):
            await bench.write(*(case_event(version, case_id=case_id) for version in (1, 2, 3)))
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 6)
        yield made


async def test_parked_cases_are_found_by_what_went_wrong(lot: Lot) -> None:
    """By group, case, stage, field or a part of the reason; what fits nothing finds nothing."""
    pool = lot.bench.pool
    for fits in (lot.of(), lot.of(stage="handler"), lot.of(field="usrn"), lot.of(reason="street"), Selection()):
        assert {case.case_id for case in await replay.show(pool, fits)} == {lot.first, lot.second}
    assert [case.case_id for case in await replay.show(pool, lot.of(lot.first))] == [lot.first]
    for misses in (lot.of(stage="data"), lot.of(field="x"), lot.of(reason="%"), lot.of(uuid4()), Selection("other")):
        assert await replay.show(pool, misses) == []
    (position, *_) = await lot.positions(lot.second)
    assert [case.case_id for case in await replay.show(pool, lot.of(position=position))] == [lot.second]


async def test_one_event_is_tried_again_and_the_rest_waits(lot: Lot) -> None:
    """The oldest event of a case goes through under its own id; those behind it stay and may not be asked for."""
    pool, trail = lot.bench.pool, lot.trail
    original = [one.event for one in await replay.events(pool, lot.bench.group, lot.first)]
    head, behind, _ = await lot.positions(lot.first)
    with pytest.raises(NotTheHead):
        await replay.request(pool, lot.of(position=behind), actor="key-1", audit=trail)
    lot.refused.clear()
    assert await replay.request(pool, lot.of(position=head), actor="key-1", audit=trail) == 1
    await lot.until_left(lot.first, 2)
    async with asyncio.timeout(20):
        while (await replay.show(pool, lot.of(lot.first)))[0].resuming:
            await asyncio.sleep(0.02)
    assert lot.handler.applied == original[:1]
    assert trail.rows == [("key-1", "parked.replay", str(lot.first))]
    assert await replay.request(pool, lot.of(lot.first), actor="key-1", audit=trail) == 1
    await lot.until_left(lot.first, 0)
    assert lot.handler.applied == original
    assert await lot.positions(lot.second) != []


async def test_cases_that_failed_alike_are_tried_again_together(lot: Lot) -> None:
    """One request for everything that failed at a field; asked twice, the second finds nothing to ask for."""
    lot.refused.clear()
    pool = lot.bench.pool
    assert await replay.request(pool, lot.of(field="other"), actor="key-1", audit=lot.trail) == 0
    assert await replay.request(pool, lot.of(field="usrn"), actor="key-1", audit=lot.trail) == 2
    for case_id in (lot.first, lot.second):
        await lot.until_left(case_id, 0)
        assert lot.handler.versions(case_id) == [1, 2, 3]
    assert {subject for _, _, subject in lot.trail.rows} == {str(lot.first), str(lot.second)}


async def test_a_dropped_case_is_kept_apart_and_its_next_event_flows(lot: Lot) -> None:
    """Given up with a reason and audited; the bytes are kept; the case is parked no more and goes on."""
    pool = lot.bench.pool
    before = await pool.fetch("select * from parked_event where case_id = $1 order by position", lot.first)
    dropped = await replay.drop(pool, lot.of(lot.first), reason="a test report", actor="key-1", audit=lot.trail)
    assert dropped == 3
    kept = await pool.fetch("select * from dropped_event order by position")
    for was, now in zip(before, kept, strict=True):
        assert dict(was).items() <= dict(now).items()
        assert (now["actor"], now["reason"]) == ("key-1", "a test report")
    assert lot.trail.rows == [("key-1", "parked.drop", str(lot.first))]
    await lot.bench.write(case_event(4, case_id=lot.first))
    await until(lambda: lot.handler.versions(lot.first) == [4])
    assert [case.case_id for case in await replay.show(pool, lot.of())] == [lot.second]


async def test_one_event_is_dropped_and_the_rest_goes_through(lot: Lot) -> None:
    """The event that can never be taken is given up, and what is behind it follows in order."""
    pool = lot.bench.pool
    lot.refused.remove(2)
    lot.refused.remove(3)
    head, behind, _ = await lot.positions(lot.first)
    with pytest.raises(NotTheHead):
        await replay.drop(pool, lot.of(position=behind), reason="no", actor="key-1", audit=lot.trail)
    assert await replay.drop(pool, lot.of(position=head), reason="no", actor="key-1", audit=lot.trail) == 1
    assert len(await lot.positions(lot.first)) == 2
    await replay.request(pool, lot.of(lot.first), actor="key-1", audit=lot.trail)
    await lot.until_left(lot.first, 0)
    assert lot.handler.versions(lot.first) == [2, 3]


async def test_what_cannot_be_audited_is_not_done(lot: Lot) -> None:
    """Without an audit row nothing is dropped and nothing is asked for."""
    lot.trail.broken = True
    with pytest.raises(ConnectionError):
        await replay.drop(lot.bench.pool, lot.of(), reason="no", actor="key-1", audit=lot.trail)
    with pytest.raises(ConnectionError):
        await replay.request(lot.bench.pool, lot.of(), actor="key-1", audit=lot.trail)
    assert len(await lot.positions(lot.first)) == 3
    assert not any(case.resuming for case in await replay.show(lot.bench.pool, lot.of()))


async def test_what_changes_parked_cases_names_their_group(lot: Lot) -> None:
    """Looking may go over all groups; changing may not."""
    with pytest.raises(ValueError, match="group"):
        await replay.request(lot.bench.pool, Selection(), actor="key-1", audit=lot.trail)


@pytest_asyncio.fixture(scope="module")
async def gateway(servers: Servers) -> AsyncIterator[World]:
    async with world(servers) as here:
        yield here


async def test_a_rehearsal_shows_each_field_and_writes_nothing(gateway: World) -> None:
    """Step by step, what each event would change at the recipient; personal values are not shown."""
    async with gateway.remote(TEAM) as team:
        case = await gateway.report()
        (first,) = await gateway.events(case.id)
        fresh = (await team.recipient.rehearse([first]))[first.event_id]
        assert fresh.outcome == "writes"
        columns = {change.column: change for change in fresh.changes}
        assert columns["site_name"].would_be == "Monks Recreation Ground"
        assert columns["site_name"].there is None
        personal = [change for change in fresh.changes if change.is_personal]
        assert personal
        assert all(change.would_be is None and change.there is None for change in personal)
        assert "Whitfield" not in repr(fresh)
        assert await jobs(team) == []
        await team.recipient.apply_each([first], fence(TEAM))
        await team.session.execute("update street.job set site_name = 'Monks Rec', state = 'doing'")
        row = dict((await jobs(team))[0])
        await gateway.note(case.id, "More.")
        await gateway.note(case.id, "And more.")
        other = await gateway.report(asset={"uprn": "60001450", "name": "x" * 121})
        events = await gateway.events(case.id, other.id)
        found = await team.recipient.rehearse(events)
        seen, second, third, refused = (found[event.event_id] for event in events)
        assert seen.outcome == "changes nothing"
        assert {(change.column, change.there, change.would_be) for change in second.changes} == {
            ("site_name", "Monks Rec", "Monks Recreation Ground"),
            ("details", None, None),
        }
        assert [change.column for change in third.changes] == ["details"]
        assert (refused.outcome, refused.field) == ("refused", "site_name")
        assert [dict(job) for job in await jobs(team)] == [row]


async def test_parked_events_are_rehearsed_as_they_wait(lot: Lot, gateway: World) -> None:
    """What cannot be opened is named as it would be refused; the events stay as they are."""
    async with gateway.remote(TEAM) as team:
        found = await replay.rehearse(team.recipient, lot.bench.pool, lot.of(lot.first))
    assert [(one.version, one.rehearsal.outcome, one.rehearsal.field) for one in found] == [
        (version, "refused", "sealed") for version in (1, 2, 3)
    ]
    assert all(isinstance(one, Rehearsed) for one in found)
    assert len(await lot.positions(lot.first)) == 3
