"""Real processes, killed and restarted, and real servers that go away: from the outbox to a recipient's own tables."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from streams.cases.cases import Cases
from streams.cases.casetype import CaseType
from streams.consumer import fence
from streams.outages import DATABASE_ERRORS
from streams.testing import CASE_SCHEMA, case_keys
from streams.topics import ensure_topics
from tests.integration.streams_worker import RECIPIENT_SQL
from tests.journal import Journal

TYPE = "public-toilet-problem"
WHO: dict[str, Any] = {"actor": "key-form", "origin": "form", "correlation_id": "0f8fad5b-d9cb-469f-a165-70867728950e"}
REPORT = {
    "submitter": {"name": "Avery Quill", "email": "avery@example.org"},
    "location": {"easting": 521000.5, "northing": 105500},
    "category": "litter",
}


@dataclass
class Site:
    """A gateway database, a recipient database and a topic, with the workers between them."""

    pool: asyncpg.Pool
    recipient: asyncpg.Pool
    config: dict[str, str]
    cases: Cases
    wanted: dict[UUID, int] = field(default_factory=dict)

    async def report(self, cases: int, notes: int) -> None:
        for _ in range(cases):
            case = (await self.cases.create(TYPE, REPORT, **WHO)).case
            self.wanted[case.id] = 1
        for n in range(notes):
            for case_id in list(self.wanted):
                after = await self.cases.note(case_id, f"note {n}", by="Sam", **WHO)
                self.wanted[case_id] = after.version

    @asynccontextmanager
    async def worker(self, **extra: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.streams_worker", json.dumps(self.config | extra)
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            await asyncio.wait_for(process.wait(), 30)

    async def until_delivered(self, bound_s: float = 60) -> None:
        async with asyncio.timeout(bound_s):
            while await self.delivered() != self.wanted:
                await asyncio.sleep(0.05)

    async def delivered(self) -> dict[UUID, int]:
        try:
            return {row["case_id"]: row["version"] for row in await self.recipient.fetch("select * from job")}
        except DATABASE_ERRORS:
            return {}

    async def assert_applied_in_order(self) -> None:
        rows = await self.recipient.fetch("select case_id, version from applied order by n")
        last: dict[UUID, int] = {}
        for row in rows:
            assert row["version"] > last.get(row["case_id"], 0), "an older version was applied over a newer one"
            last[row["case_id"]] = row["version"]
        assert last == self.wanted
        assert await self.pool.fetchval("select count(*) from outbox where published_at is null") == 0
        assert await self.pool.fetchval("select count(*) from parked_key") == 0


@pytest_asyncio.fixture
async def site(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Site]:
    topic = f"{topic_prefix}cases.changes.v1"
    await ensure_topics(servers.kafka_bootstrap, [topic], 3, 1)
    recipient_url = gateway_database.url + "_street_team"
    name = recipient_url.rsplit("/", 1)[1]
    async with asyncpg.create_pool(
        gateway_database.url, min_size=0, max_size=4, server_settings={"search_path": "gateway"}
    ) as pool:
        await pool.execute(f'create database "{name}"')
        async with asyncpg.create_pool(recipient_url, min_size=0, max_size=3) as recipient:
            await recipient.execute(RECIPIENT_SQL + fence.RECIPIENT_TABLE_SQL)
            config = {
                "bootstrap": servers.kafka_bootstrap,
                "gateway": gateway_database.url,
                "recipient": recipient_url,
                "topic": topic,
                "group": f"{topic_prefix}street-team",
            }
            cases = Cases(pool, case_keys(), {TYPE: CaseType(TYPE, CASE_SCHEMA)}, topic=topic)
            yield Site(pool, recipient, config, cases)
        await pool.execute(f'drop database "{name}" with (force)')


@pytest.mark.parametrize(
    "place",
    [
        "outbox.after_select:hit=2",
        "outbox.after_send:hit=2",
        "outbox.after_mark:hit=2",
        "consumer.after_fetch",
        "consumer.before_handler:hit=2",
        "recipient.before_commit:hit=2",
        "recipient.after_commit:hit=2",
        "consumer.after_handler:hit=2",
        "consumer.before_commit",
        "consumer.after_commit",
    ],
)
async def test_a_worker_killed_anywhere_loses_nothing_and_repeats_nothing(
    site: Site, tmp_path: Path, place: str
) -> None:
    """SIGKILL between outbox, Kafka and recipient: the next worker completes it, every version applied at most once."""
    await site.report(cases=6, notes=3)
    async with Journal(path=tmp_path / "journal").kept() as journal:
        async with site.worker(fail=f"{place}:kill", journal=journal.address) as victim:
            assert await asyncio.wait_for(victim.wait(), 30) == -signal.SIGKILL
        assert [seen.name for seen in journal.seen] == [place.partition(":")[0]]
        async with site.worker():
            await site.report(cases=2, notes=1)
            await site.until_delivered()
    await site.assert_applied_in_order()


async def test_a_worker_that_was_frozen_writes_nothing_over_the_new_owner(site: Site, tmp_path: Path) -> None:
    """Stopped inside its transaction's window until others took over, it wakes to a fence: nothing old is written."""
    await site.report(cases=6, notes=2)
    async with (
        Journal(path=tmp_path / "journal").kept() as journal,
        site.worker(fail="consumer.before_handler:stop", journal=journal.address) as zombie,
    ):
        async with asyncio.timeout(30):
            while not journal.seen:
                await asyncio.sleep(0.02)
        async with site.worker():
            await site.report(cases=0, notes=2)
            await site.until_delivered()
            zombie.send_signal(signal.SIGCONT)
            await site.report(cases=1, notes=1)
            await site.until_delivered()
    await site.assert_applied_in_order()


async def test_kafka_may_restart_under_load(stack: Any, site: Site) -> None:
    """A broker that goes and comes back loses nothing; posts are taken all the while."""
    async with site.worker():
        await site.report(cases=5, notes=1)
        await site.until_delivered()
        restart = asyncio.create_task(stack.control("kafka", "restart"))
        await site.report(cases=5, notes=3)
        await restart
        await site.report(cases=1, notes=1)
        await site.until_delivered()
    await site.assert_applied_in_order()


async def test_postgres_may_crash_under_load(stack: Any, site: Site) -> None:
    """After an immediate stop of the database, relay and consumer find their way back by themselves."""
    async with site.worker():
        await site.report(cases=5, notes=2)
        await site.until_delivered()
        await stack.control("postgres", "crash")
        async with asyncio.timeout(30):
            while not await _answers(site.pool):
                await asyncio.sleep(0.1)
        await site.report(cases=5, notes=1)
        await site.until_delivered()
    await site.assert_applied_in_order()


async def _answers(pool: asyncpg.Pool) -> bool:
    try:
        await pool.execute("select 1")
    except DATABASE_ERRORS:
        return False
    return True
