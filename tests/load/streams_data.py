"""What P7 reads and writes: cases with their keys, their events in a topic, the recipient's table, and its truth."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaProducer

from gateway.dev.addresses import Servers
from streams.cases.keys import seal_personal
from streams.consumer.fence import RECIPIENT_TABLE_SQL
from streams.events import CaseEvent, encode
from streams.sql.migrate import migrate
from streams.testing import PlainKeySealer
from streams.topics import ensure_topics
from tests.load.bench_mapping import CASE, CASE_TYPE, by_hand

PARTITIONS = 4
VERSIONS = 5
_TYPES = {"easting": "float8", "northing": "float8", "cubicles": "int8"}
COLUMNS = tuple(by_hand(CASE))
_NAMES = ", ".join(("ref", "rev", *COLUMNS))
_KINDS = ("text", "int8", *(_TYPES.get(name, "text") for name in COLUMNS))
_TABLE = ", ".join(f"{name} {_TYPES.get(name, 'varchar(300)')}" for name in COLUMNS)
_SCHEMA = f"""
create table job (no bigint generated always as identity primary key, ref text not null unique,
                  rev bigint not null, {_TABLE});
create table expected (ref text primary key, rev bigint not null, {_TABLE});
"""
UPSERT = (
    f"insert into job as held ({_NAMES}) select * from unnest("
    + ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(_KINDS, start=1))
    + ") on conflict (ref) do update set "
    + ", ".join(f"{name} = excluded.{name}" for name in ("rev", *COLUMNS))
    + " where held.rev < excluded.rev"
)
_WRONG = f"""
select abs((select count(*) from expected) - (select count(*) from job))
     + (select count(*) from (select {_NAMES} from expected except select {_NAMES} from job) as missing)
"""


@dataclass(frozen=True)
class Work:
    """One topic of events, and the databases of its two sides. `versions` is the sum of all cases' last ones."""

    kafka: str
    topic: str
    gateway: str
    recipient: str
    ring: bytes
    events: int
    versions: int

    def environment(self, group: str) -> dict[str, str]:
        """What a side is told."""
        return {
            "BENCH_KAFKA": self.kafka,
            "BENCH_TOPIC": self.topic,
            "BENCH_GROUP": group,
            "BENCH_GATEWAY": self.gateway,
            "BENCH_RECIPIENT": self.recipient,
            "BENCH_RING": base64.b64encode(self.ring).decode(),
            "BENCH_UPSERT": UPSERT,
        }

    async def wrong_rows(self, session: asyncpg.Connection) -> int:
        """How many rows are missing, too many or other than the last event of their case says."""
        wrong: int = await session.fetchval(_WRONG)
        return wrong

    async def drop(self, servers: Servers) -> None:
        """Remove the databases."""
        session = await asyncpg.connect(servers.postgres_url)
        try:
            for url in (self.gateway, self.recipient):
                await session.execute(f'drop database "{urlsplit(url).path[1:]}" with (force)')
        finally:
            await session.close()


async def prepare(servers: Servers, events: int) -> Work:
    """Make everything that is there before the clock starts."""
    name = f"bench_{secrets.token_hex(4)}"
    gateway, recipient = (_database(servers.postgres_url, f"{name}_{side}") for side in ("gateway", "recipient"))
    session = await asyncpg.connect(servers.postgres_url)
    try:
        for url in (gateway, recipient):
            await session.execute(f'create database "{urlsplit(url).path[1:]}"')
    finally:
        await session.close()
    topic, ring, cases = f"{name}.cases.changes.v1", os.urandom(32), max(1, events // VERSIONS)
    await ensure_topics(servers.kafka_bootstrap, [topic], PARTITIONS, 1)
    order = [n for n in range(cases) for _ in range(VERSIONS)]
    random.Random(7).shuffle(order)
    last = await _fill(gateway, recipient, ring, order)
    await _produce(servers.kafka_bootstrap, topic, last.pop_events())
    return Work(servers.kafka_bootstrap, topic, gateway, recipient, ring, len(order), VERSIONS * cases)


@dataclass
class _Made:
    """The cases' keys, and their events as they are made one after another."""

    keys: list[tuple[UUID, bytes]]
    order: list[int]

    def pop_events(self) -> Iterator[CaseEvent]:
        sealers = [PlainKeySealer(key) for _, key in self.keys]
        versions = [0] * len(self.keys)
        at = datetime.now(UTC)
        for n in self.order:
            versions[n] += 1
            case_id = self.keys[n][0]
            public, personal = parts(n, versions[n])
            yield CaseEvent(
                event_id=UUID(bytes=os.urandom(16), version=4),
                type="case.created" if versions[n] == 1 else "case.updated",
                case_id=case_id,
                case_type=CASE_TYPE,
                reference=reference(n),
                version=versions[n],
                at=at,
                origin="form",
                correlation_id=f"bench-{n}",
                hops=0,
                status="open",
                changed=("summary",),
                document=public,
                sealed=seal_personal(sealers[n], case_id, personal),
            )


def reference(n: int) -> str:
    return f"RAP-{n:08d}"


def parts(n: int, version: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The public and the personal part of a case as it was at a version."""
    case = {**CASE, "summary": f"{CASE['summary']} ({n}, {version})"}
    return case, {"submitter": {**case.pop("submitter"), "name": f"Ada Whitfield {n}"}}


async def _fill(gateway: str, recipient: str, ring: bytes, order: list[int]) -> _Made:
    cases = max(order) + 1
    keys = [(UUID(bytes=os.urandom(16), version=4), os.urandom(32)) for _ in range(cases)]
    wrap = PlainKeySealer(ring)
    now = datetime.now(UTC)
    session = await asyncpg.connect(gateway)
    try:
        await migrate(session)
        await session.copy_records_to_table(
            "case_key",
            schema_name="gateway",
            columns=["case_id", "wrapped"],
            records=[(case_id, wrap.seal(key, bound_to=b"case-key:" + case_id.bytes)) for case_id, key in keys],
        )
        await session.copy_records_to_table(
            "cases",
            schema_name="gateway",
            columns=[
                "id",
                "reference",
                "type",
                "version",
                "status",
                "document",
                "sealed",
                "submitted_by",
                "created_at",
            ],
            records=[
                (case_id, reference(n), CASE_TYPE, VERSIONS, "open", "{}", b"", "bench", now)
                for n, (case_id, _) in enumerate(keys)
            ],
        )
    finally:
        await session.close()
    session = await asyncpg.connect(recipient)
    try:
        await session.execute(_SCHEMA + RECIPIENT_TABLE_SQL)
        truth = []
        for n in range(cases):
            public, personal = parts(n, VERSIONS)
            truth.append((reference(n), VERSIONS, *by_hand({**public, **personal}).values()))
        await session.copy_records_to_table("expected", columns=["ref", "rev", *COLUMNS], records=truth)
        await session.execute("analyze expected")
    finally:
        await session.close()
    return _Made(keys, order)


async def _produce(bootstrap: str, topic: str, events: Iterator[CaseEvent]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5, max_batch_size=256 * 1024)
    await producer.start()
    try:
        sent = []
        for event in events:
            key, value, headers = encode(event)
            sent.append(await producer.send(topic, value, key=key, headers=headers))
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def _database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
