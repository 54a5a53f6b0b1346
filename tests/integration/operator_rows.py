"""Rows of two cases as the streams leave them: one that went through, one in trouble. Sealed columns hold a marker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

LITTER, BLOCKED = UUID(int=0xA1), UUID(int=0xB2)
MAIL_DONE, MAIL_UNKNOWN = UUID(int=0xC1), UUID(int=0xC2)
LITTER_CORRELATION, BLOCKED_CORRELATION = "corr-litter-0001", "corr-blocked-0002"
SEALED = b"sealed: Alex Sample, alex@example.com"
WORKER = UUID(int=0xD1)
BEGAN = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


async def insert_rows(connection: asyncpg.Connection, key_id: str) -> None:
    """Everything the pages read, in the gateway's schema and in one silo's."""
    await connection.execute("set search_path = gateway")
    await _case(connection, LITTER, "RAP-7KQ2-93XD", "in_progress", 2, "litter", "Beach Green", key_id)
    await _case(connection, BLOCKED, "RAP-0000-BLCK", "open", 1, "blocked", "Middle Street", key_id)
    await _event(connection, LITTER, 1, "case.created", "form", "key:" + key_id, LITTER_CORRELATION, "open", 0)
    await _event(
        connection, LITTER, 2, "case.updated", "recipient:street-team", "poller", LITTER_CORRELATION, "in_progress", 60
    )
    await _event(connection, BLOCKED, 1, "case.created", "form", "key:" + key_id, BLOCKED_CORRELATION, "open", 100)
    await _outbox(connection, LITTER, 1, at(0), at(0.2))
    await _outbox(connection, LITTER, 2, at(60), at(60.1))
    await _outbox(connection, BLOCKED, 1, at(100), None)
    await connection.execute(
        "insert into xref (recipient, case_id, remote_id, version, state, mapping, pushed_at)"
        " values ('street-team', $1, '4711', 1, 'applied', 'a1b2c3d4e5f60718', $2)",
        LITTER,
        at(0.5),
    )
    await connection.execute(
        "insert into parked_key (consumer_group, case_id, topic, partition, stage, field, reason, attempts, parked_at)"
        " values ('recipient.contractor', $1, 'cases.changes.v1', 0, 'mapping', 'JobTitle', 'too_long', 8, $2)",
        BLOCKED,
        at(130),
    )
    await connection.execute(
        "insert into parked_event"
        " (consumer_group, case_id, version, topic, partition, record_offset, record_sha256, headers, value)"
        " values ('recipient.contractor', $1, 1, 'cases.changes.v1', 0, 7, '', '{}', '')",
        BLOCKED,
    )
    await connection.execute(
        "insert into stray_record"
        " (consumer_group, topic, partition, record_offset, record_sha256, headers, stage, reason)"
        " values ('recipient.contractor', 'cases.changes.v1', 0, 3, '', '{}', 'decode', 'key_is_no_case')"
    )
    await _effect(connection, MAIL_DONE, LITTER, "done", None, "250 queued", LITTER_CORRELATION, 0.4)
    await _effect(connection, MAIL_UNKNOWN, BLOCKED, "unknown", "lease_ran_out", None, BLOCKED_CORRELATION, 101)
    await _silo(connection)


async def _case(
    connection: asyncpg.Connection, case_id: UUID, reference: str, status: str, version: int, *rest: str
) -> None:
    category, toilet, key_id = rest
    document = (
        f'{{"category": "{category}", "asset": {{"uprn": "60001449", "name": "{toilet}"}}, "status": "{status}"}}'
    )
    await connection.execute(
        "insert into cases (id, reference, type, version, status, document, sealed, submitted_by, created_at,"
        " updated_at) values ($1, $2, 'public-toilet-problem', $3, $4, $5, $6, $7, $8, $8)",
        case_id,
        reference,
        version,
        status,
        document,
        SEALED,
        key_id,
        at(0 if case_id == LITTER else 100),
    )


async def _event(connection: asyncpg.Connection, case_id: UUID, version: int, *rest: object) -> None:
    kind, origin, actor, correlation_id, status, seconds = rest
    await connection.execute(
        "insert into case_event (case_id, version, event_id, type, at, origin, actor, correlation_id, changed,"
        " document, sealed) values ($1, $2, gen_random_uuid(), $3, $4, $5, $6, $7, $8, $9, $10)",
        case_id,
        version,
        kind,
        at(float(str(seconds))),
        origin,
        actor,
        correlation_id,
        ["status"],
        f'{{"status": "{status}"}}',
        SEALED,
    )


async def _outbox(
    connection: asyncpg.Connection, case_id: UUID, version: int, created: datetime, published: datetime | None
) -> None:
    await connection.execute(
        "insert into outbox (bucket, topic, key, version, headers, value, created_at, published_at)"
        " values (1, 'cases.changes.v1', $1, $2, '{}', '', $3, $4)",
        str(case_id),
        version,
        created,
        published,
    )


async def _effect(connection: asyncpg.Connection, effect_id: UUID, case_id: UUID, state: str, *rest: object) -> None:
    reason, provider, correlation_id, seconds = rest
    began = float(str(seconds))
    await connection.execute(
        "insert into effect (effect_id, sink, case_id, case_version, purpose, occurrence, state, payload, attempt,"
        " provider_ref, reason, correlation_id, created_at, updated_at)"
        " values ($1, 'smtp', $2, 1, 'confirmation', 'once', $3, $4, 1, $5, $6, $7, $8, $9)",
        effect_id,
        case_id,
        state,
        SEALED,
        provider,
        reason,
        correlation_id,
        at(began),
        at(began + 2),
    )
    await connection.execute(
        "insert into effect_attempt values ($1, 1, $2, 'committing', $3, $4, $5, $6)",
        effect_id,
        WORKER,
        at(began + 1),
        at(began + 2),
        state,
        reason or provider,
    )
    await connection.execute(
        "insert into audit (chain, n, at, actor, action, subject, outcome, correlation_id, detail, previous, hash)"
        " values ($1, $2, $3, 'ledger', 'effect.attempt', $4, $5, $6, $7, '', '')",
        WORKER,
        1 if case_id == LITTER else 2,
        at(began + 2),
        str(case_id),
        state,
        correlation_id,
        f'{{"effect_id": "{effect_id}", "attempt": 1}}',
    )


async def _silo(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """
        create schema silo_assets;
        set search_path = silo_assets;
        create table progress (epoch text, seq bigint, id text, definition text, source_position jsonb,
                               applied_at timestamptz default now());
        create table load (id bigint primary key, source_time timestamptz, started timestamptz, completed timestamptz,
                           added bigint, changed bigint, removed bigint, rejected bigint);
        create table reject (load_id bigint, file text, sheet text, row_number bigint, column_name text,
                             value_shown text, reason text, tags text[], table_name text);
        insert into progress values ('e', 3, 'i', 'd', '{}');
        insert into load values (1, now() - interval '1 day', now(), now(), 14, 0, 0, 1);
        insert into reject values (1, 'assets.csv', null, 4, 'CoordinateReferenceSystem', 'OSGB3', 'must be OSGB36',
                                   '{}', 'toilet');
        create schema silo_claims;
        create table silo_claims.progress as select * from progress with no data;
        create table silo_claims.load as select * from load with no data;
        create table silo_claims.reject as select * from reject with no data;
        set search_path = gateway;
        """
    )
