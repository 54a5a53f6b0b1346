"""A gateway database with real cases, and recipients' databases made as the systems' owners would have made them."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
from prometheus_client import CollectorRegistry

from gateway.dev.addresses import Servers
from streams.cases.cases import Case, Cases
from streams.cases.casetype import CaseType
from streams.cases.keys import CaseKeys
from streams.consumer.fence import Fence
from streams.events import CaseEvent
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration
from streams.recipients.database import RecipientDatabase
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.poller import Poller
from streams.recipients.postgres import PostgresRecipient, Wanted
from streams.sql.migrate import migrate
from streams.testing import PlainKeySealer

FOLDER = Path(__file__).resolve().parents[2] / "deploy/integrations/report-a-problem"
CASE_TYPE = CaseType("public-toilet-problem", json.loads((FOLDER / "case.schema.json").read_text()))
TOPIC = "cases.changes.v1"
_EMPTIED = "drop schema if exists street cascade; drop schema public cascade; create schema public"

DOCUMENT: dict[str, Any] = {
    "submitter": {"name": "Ada Whitfield", "email": "ada@example.org", "telephone": "01632 960001"},
    "location": {"easting": 518225, "northing": 104730, "postcode": "BN15 9JB", "description": "by the  gate"},
    "asset": {"uprn": "60001449", "name": "Monks Recreation Ground"},
    "category": "litter",
    "notes": [{"text": "The bins are full."}],
}


@dataclass(frozen=True, slots=True)
class Remote:
    """One recipient as its own people see it, and our two sides of it."""

    url: str
    session: asyncpg.Connection
    database: RecipientDatabase
    recipient: PostgresRecipient
    poller: Poller
    metrics: CollectorRegistry

    def count(self, name: str, **labels: str) -> float:
        """A counter of the recipient's metrics."""
        return self.metrics.get_sample_value(f"silogate_{name}", labels) or 0.0


@dataclass(frozen=True, slots=True)
class World:
    """The gateway's side with its cases and keys, and the database in which recipients are made, one at a time."""

    servers: Servers
    url: str
    remote_url: str
    ring_key: bytes
    pool: asyncpg.Pool
    keys: CaseKeys
    cases: Cases

    async def report(self, **changed: Any) -> Case:
        """A resident's report; any top-level field of the document can be given."""
        created = await self.cases.create(
            CASE_TYPE.name, {**DOCUMENT, **changed}, actor="key-form", origin="form", correlation_id=str(uuid4())
        )
        return created.case

    async def change(self, case_id: UUID, **patch: Any) -> Case:
        """An officer's change."""
        return await self.cases.change(case_id, patch, actor="officer-7", origin="officer", correlation_id=str(uuid4()))

    async def note(self, case_id: UUID, text: str) -> Case:
        """An officer's note."""
        return await self.cases.note(
            case_id, text, by="officer", actor="officer-7", origin="officer", correlation_id=str(uuid4())
        )

    async def events(self, *case_ids: UUID) -> list[CaseEvent]:
        """Everything that happened to the cases, as a topic would bring it."""
        return [event for case_id in case_ids for event in await self.cases.history(case_id, 0)]

    async def erase(self, case_id: UUID) -> None:
        """Destroys the key of a case, as erasing a person does."""
        await self.pool.execute("update case_key set wrapped = null, erased_at = now() where case_id = $1", case_id)

    async def link(self, recipient: str, case_id: UUID) -> dict[str, Any]:
        """What the gateway knows about the case at the recipient."""
        row = await self.pool.fetchrow("select * from xref where recipient = $1 and case_id = $2", recipient, case_id)
        return {} if row is None else dict(row)

    @asynccontextmanager
    async def remote(
        self,
        name: str,
        *,
        extra_sql: str = "",
        wanted: Wanted | None = None,
        yaml: dict[str, str] | None = None,
        lock_s: float = 0.2,
        statement_s: float = 10.0,
        deadline_s: float = 50.0,
    ) -> AsyncIterator[Remote]:
        """A recipient with a database of its own; `yaml` replaces words of its file, `extra_sql` alters its table."""
        path = FOLDER / "recipients" / f"{name}.yaml"
        text = path.read_text()
        for old, new in (yaml or {}).items():
            assert old in text
            text = text.replace(old, new)
        declaration = RecipientDeclaration.parse(path, text)
        await self.pool.execute("truncate xref, inbox, poll_position")
        session = await asyncpg.connect(self.remote_url)
        await session.execute(_EMPTIED)
        await session.execute((FOLDER / "recipients" / f"{name}.schema.sql").read_text() + extra_sql)
        mapping = Mapping.compile(declaration, CASE_TYPE)
        database = RecipientDatabase(self.remote_url, mapping, statement_s=statement_s, lock_s=lock_s)
        registry = CollectorRegistry()
        metrics = RecipientMetrics(registry, [name])
        recipient = PostgresRecipient(
            declaration,
            database,
            keys=self.keys,
            gateway_pool=self.pool,
            metrics=metrics,
            wanted=wanted,
            deadline_s=deadline_s,
        )
        poller = Poller(declaration, database, cases=self.cases, gateway_pool=self.pool, metrics=metrics)
        try:
            await recipient.on_assigned(fence(name))
            yield Remote(self.remote_url, session, database, recipient, poller, registry)
        finally:
            await database.close()
            await session.close()


def fence(group: str, epoch: int = 1, partitions: Sequence[int] = (0,)) -> Fence:
    """The right to write for the partitions of the one topic."""
    return Fence(group, TOPIC, dict.fromkeys(partitions, epoch))


async def errors_of(remote: Remote, events: list[CaseEvent], epoch: int = 1) -> dict[int, Exception]:
    """Applies the events at the street team: version → error of those that were not applied."""
    versions = {event.event_id: event.version for event in events}
    errors = await remote.recipient.apply_each(events, fence("street-team", epoch))
    return {versions[event_id]: error for event_id, error in errors.items()}


async def jobs(remote: Remote) -> list[asyncpg.Record]:
    """The street team's table."""
    rows: list[asyncpg.Record] = await remote.session.fetch("select * from street.job order by job_no")
    return rows


@asynccontextmanager
async def world(servers: Servers) -> AsyncIterator[World]:
    """A gateway's database with nothing in it yet, and one for recipients. Several tests may share it."""
    async with fresh_database(servers) as url, fresh_database(servers) as remote_url:
        connection = await asyncpg.connect(url)
        await migrate(connection)
        await connection.close()
        async with asyncpg.create_pool(url, min_size=1, max_size=8, server_settings={"search_path": "gateway"}) as pool:
            ring_key = secrets.token_bytes(32)
            keys = CaseKeys(PlainKeySealer(ring_key), PlainKeySealer)
            cases = Cases(pool, keys, {CASE_TYPE.name: CASE_TYPE}, topic=TOPIC)
            yield World(servers, url, remote_url, ring_key, pool, keys, cases)


@asynccontextmanager
async def fresh_database(servers: Servers) -> AsyncIterator[str]:
    """An empty database on the same server, with no replica of ours to wait for."""
    name = f"test_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(servers.postgres_url)
    try:
        await admin.execute(f'create database "{name}"')
        yield urlunsplit(urlsplit(servers.postgres_url)._replace(path=f"/{name}"))
        await admin.execute(f'drop database "{name}" with (force)')
    finally:
        await admin.close()
