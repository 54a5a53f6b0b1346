"""A worker killed with -9 anywhere on its way to the recipient: after redelivery nothing is lost and nothing twice."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.dev.addresses import Servers
from streams.events import CaseEvent
from tests.faults.apply_events import order
from tests.integration.recipient_world import World, fence, world
from tests.journal import Journal

TEAM = "street-team"
HISTORY = """
create table street.history (n bigint generated always as identity, ref text, version bigint);
create function street.remember() returns trigger language plpgsql as $$ begin
    insert into street.history (ref, version) values (new.gateway_ref, new.gateway_version); return new; end $$;
create trigger job_history after insert or update on street.job for each row execute function street.remember();
"""


@pytest_asyncio.fixture(scope="module")
async def gateway(servers: Servers) -> AsyncIterator[World]:
    async with world(servers) as here:
        yield here


async def work(gateway: World, events: list[CaseEvent], failpoint: str = "", address: str = "") -> tuple[int, int]:
    """Another process applies the events; its id and how it ended."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.apply_events", stdin=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        await worker.communicate(order(gateway, TEAM, events, failpoint, address))
    assert worker.returncode is not None
    return worker.pid, worker.returncode


@pytest.mark.faults
@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("recipient.before_transaction", 0),
        ("recipient.before_commit", 0),
        ("recipient.after_commit", 12),
        ("recipient.after_xref", 12),
    ],
)
async def test_a_killed_worker_loses_nothing_and_doubles_nothing(gateway: World, place: str, written: int) -> None:
    """The batch is delivered again after the kill, as Kafka would: each case is written once, and linked."""
    async with gateway.remote(TEAM, extra_sql=HISTORY) as team, Journal().kept() as journal:
        cases = [await gateway.report() for _ in range(12)]
        for case in cases[:4]:
            await gateway.note(case.id, "Still full.")
        events = await gateway.events(*(case.id for case in cases))
        pid, code = await work(gateway, events, f"{place}:kill", journal.address)
        assert code == -signal.SIGKILL
        assert [(seen.name, seen.pid) for seen in journal.seen] == [(place, pid)]
        assert await team.session.fetchval("select count(*) from street.job") == written

        assert (await work(gateway, events))[1] == 0
        assert not await team.recipient.apply_each(events, fence(TEAM))
        history = await team.session.fetch("select ref, version from street.history order by ref")
        expected = [(case.reference, 2 if case in cases[:4] else 1) for case in cases]
        assert [tuple(row) for row in history] == sorted(expected)
        links = await gateway.pool.fetch("select version, state, remote_id from xref")
        assert sorted(link["version"] for link in links) == [1] * 8 + [2] * 4
        assert all(link["state"] == "applied" and link["remote_id"] for link in links)
