"""The rows a case is made of, read and written. Every function runs inside its caller's transaction."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from streams.events import HOP_LIMIT, CaseEvent, HopLimit, encode

BUCKETS = 64
OUTBOX_CHANNEL = "outbox"

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_REFERENCE_TRIES = 5

_INSERT_CASE = """
insert into cases (id, reference, type, version, status, document, sealed, submitted_by, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9) on conflict (reference) do nothing returning id
"""
_UPDATE_CASE = "update cases set version = $2, status = $3, document = $4, sealed = $5, updated_at = $6 where id = $1"
_SELECT_CASE = """
select id, reference, type, version, status, document, sealed, created_at, updated_at from cases where id = $1
"""
_INSERT_EVENT = """
insert into case_event (case_id, version, event_id, type, at, origin, actor, correlation_id, hops, changed, document,
                        sealed)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
_INSERT_OUTBOX = """
insert into outbox (bucket, topic, key, version, headers, value) values ($1, $2, $3, $4, $5, $6)
"""
_SELECT_EVENTS = """
select e.case_id, e.version, e.event_id, e.type, e.at, e.origin, e.correlation_id, e.hops, e.changed, e.document,
       e.sealed, c.reference, c.type as case_type
from case_event e join cases c on c.id = e.case_id
where e.case_id = $1 and e.version > $2 order by e.version limit $3
"""
_LIST_ATTACHMENTS = """
select id, case_id, sha256, media_type, bytes, created_at from attachment where case_id = $1 order by created_at, id
"""
_INSERT_ATTACHMENT = """
insert into attachment (id, case_id, sha256, media_type, bytes, created_at) values ($1, $2, $3, $4, $5, $6)
"""
_CLAIM_KEY = """
insert into idempotency (api_key, key, request_sha256, case_id) values ($1, $2, $3, $4)
on conflict do nothing returning case_id
"""
_READ_KEY = "select request_sha256, case_id from idempotency where api_key = $1 and key = $2"
_FIRST_SIGHT = """
insert into inbox (source, message_id, outcome) values ($1, $2, 'taken') on conflict do nothing returning source
"""


class ReferencesExhausted(Exception):
    """No free reference in several draws: the source of randomness is broken."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """A row of `cases`, its personal part still sealed."""

    id: UUID
    reference: str
    type: str
    version: int
    status: str
    document: dict[str, Any]
    sealed: bytes
    created_at: datetime
    updated_at: datetime


def bucket_of(case_id: UUID) -> int:
    """The outbox bucket of a case: its events share it, and a relay owns whole buckets."""
    return int.from_bytes(case_id.bytes[-2:], "big") % BUCKETS


def new_reference(prefix: str) -> str:
    """A reference that is easy to read aloud and cannot be guessed from another, such as RAP-7KQ2-93XD."""
    drawn = "".join(secrets.choice(_CROCKFORD) for _ in range(8))
    return f"{prefix}-{drawn[:4]}-{drawn[4:]}"


async def insert_case(connection: asyncpg.Connection, row: CaseRow, *, prefix: str, submitted_by: str) -> CaseRow:
    """Inserts a new case under a reference drawn here, and returns the row with it."""
    for _ in range(_REFERENCE_TRIES):
        drawn = replace(row, reference=new_reference(prefix))
        inserted = await connection.fetchval(
            _INSERT_CASE,
            drawn.id,
            drawn.reference,
            drawn.type,
            drawn.version,
            drawn.status,
            dumps(drawn.document),
            drawn.sealed,
            submitted_by,
            drawn.created_at,
        )
        if inserted is not None:
            return drawn
    raise ReferencesExhausted


async def update_case(connection: asyncpg.Connection, row: CaseRow) -> None:
    """Writes the new state of a case whose row the caller has locked."""
    await connection.execute(
        _UPDATE_CASE, row.id, row.version, row.status, dumps(row.document), row.sealed, row.updated_at
    )


async def select_case(connection: asyncpg.Connection, case_id: UUID, *, lock: bool = False) -> CaseRow | None:
    """The case, locked against other writers when `lock` is set."""
    record = await connection.fetchrow(_SELECT_CASE + " for update" if lock else _SELECT_CASE, case_id)
    if record is None:
        return None
    return CaseRow(**{**dict(record), "document": orjson.loads(record["document"])})


async def append_event(connection: asyncpg.Connection, event: CaseEvent, *, actor: str, topic: str) -> None:
    """Writes the event into the history and into the outbox, and wakes the relays when the transaction commits."""
    await connection.execute(
        _INSERT_EVENT,
        event.case_id,
        event.version,
        event.event_id,
        event.type,
        event.at,
        event.origin,
        actor,
        event.correlation_id,
        event.hops,
        list(event.changed),
        dumps(event.document),
        event.sealed,
    )
    key, value, headers = encode(event)
    await connection.execute(
        _INSERT_OUTBOX,
        bucket_of(event.case_id),
        topic,
        key.decode(),
        event.version,
        dumps([[name, text.decode()] for name, text in headers]),
        value,
    )
    await connection.execute("select pg_notify($1, '')", OUTBOX_CHANNEL)


async def select_events(
    connection: asyncpg.Connection, case_id: UUID, after_version: int, limit: int
) -> Sequence[CaseEvent]:
    """The events of a case after a version, oldest first."""
    return [_event(record) for record in await connection.fetch(_SELECT_EVENTS, case_id, after_version, limit)]


async def claim_key(
    connection: asyncpg.Connection, api_key: str, key: str, request_sha256: bytes, case_id: UUID
) -> tuple[bytes, UUID] | None:
    """Takes an idempotency key for a case; or, when it is taken, says for which body and case.

    A transaction with the same key that has not ended yet makes the insert wait: it then finds either the other's
    case or nothing, so two posts at once make one case.
    """
    if await connection.fetchval(_CLAIM_KEY, api_key, key, request_sha256, case_id) is not None:
        return None
    first = await connection.fetchrow(_READ_KEY, api_key, key)
    return first["request_sha256"], first["case_id"]


async def first_sight(connection: asyncpg.Connection, source: str, message_id: str) -> bool:
    """Whether this message was never taken before; from now on it was."""
    return await connection.fetchval(_FIRST_SIGHT, source, message_id) is not None


async def insert_attachment(connection: asyncpg.Connection, columns: Sequence[object]) -> None:
    """Records one file of a case: id, case, hash, media type, size and time, in this order."""
    await connection.execute(_INSERT_ATTACHMENT, *columns)


async def select_attachments(connection: asyncpg.Connection, case_id: UUID) -> Sequence[asyncpg.Record]:
    """The files of a case, oldest first."""
    return list(await connection.fetch(_LIST_ATTACHMENTS, case_id))


def new_event(
    row: CaseRow, kind: str, *, origin: str, correlation_id: str, hops: int, changed: Sequence[str]
) -> CaseEvent:
    """The event that says how `row` came to be as it is; raises HopLimit for one of a loop."""
    if hops > HOP_LIMIT:
        raise HopLimit
    return CaseEvent(
        event_id=uuid4(),
        type=kind,
        case_id=row.id,
        case_type=row.type,
        reference=row.reference,
        version=row.version,
        at=row.updated_at,
        origin=origin,
        correlation_id=correlation_id,
        hops=hops,
        status=row.status,
        changed=tuple(changed),
        document=row.document,
        sealed=row.sealed,
    )


def dumps(value: object) -> str:
    """JSON text for a jsonb column."""
    return orjson.dumps(value).decode()


def _event(record: asyncpg.Record) -> CaseEvent:
    document = orjson.loads(record["document"])
    fields = {**dict(record), "document": document, "changed": tuple(record["changed"]), "status": document["status"]}
    return CaseEvent(**fields)
