"""What a poll saw at a recipient, against what the gateway's database knows of it already."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

# Longer than any poll, retry and batch job takes that would change a row by itself
_ANSWERED_WITHIN_S = 3600.0

_POSITION = "select changed_at from poll_position where recipient = $1"

_KNOWN = """
select seen.message_id is not null as seen, c.id as case_id, c.type as case_type, c.version, c.status,
       first.correlation_id, x.case_id is not null as linked, x.remote_status,
       last.origin as last_origin, last.hops as last_hops,
       extract(epoch from now() - last.at)::float8 as last_age_s
from unnest($2::text[], $3::text[]) with ordinality as saw(message_id, reference, n)
left join inbox seen on seen.source = $1 and seen.message_id = saw.message_id
left join cases c on c.reference = saw.reference
left join case_event first on first.case_id = c.id and first.version = 1
left join case_event last on last.case_id = c.id and last.version = c.version
left join xref x on x.recipient = $4 and x.case_id = c.id
order by saw.n
"""
_REMEMBER = """
insert into inbox (source, message_id, outcome)
select $1, message_id, outcome from unnest($2::text[], $3::text[]) as saw(message_id, outcome)
on conflict do nothing
"""
_BASE = """
update xref set remote_status = saw.code from unnest($2::uuid[], $3::text[]) as saw(case_id, code)
where xref.recipient = $1 and xref.case_id = saw.case_id and xref.remote_status is distinct from saw.code
"""
_ADVANCE = """
insert into poll_position as held (recipient, changed_at, remote_id) values ($1, $2, $3)
on conflict (recipient) do update set changed_at = excluded.changed_at, remote_id = excluded.remote_id
where held.changed_at <= excluded.changed_at
"""


@dataclass(frozen=True, slots=True)
class Observation:
    """One row of a page of a poll. `age_s`: how long ago it changed, by the recipient's own clock."""

    remote_id: str
    reference: str
    code: str | None
    modified: datetime
    age_s: float

    @property
    def message_id(self) -> str:
        """The same change always gives the same id; another status or another moment gives another one."""
        text = "\x1f".join((self.remote_id, self.code or "", self.modified.isoformat()))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Known:
    """What we know of an observed row's case. `remote_status`: the recipient's word that we last took note of.

    `last_*` are of the case's newest event: who made it, over how many hops, and how long ago.
    """

    seen: bool
    case_id: UUID | None
    case_type: str | None
    version: int
    status: str
    correlation_id: str
    linked: bool
    remote_status: str | None
    last_origin: str = ""
    last_hops: int = 0
    last_age_s: float = 0.0

    def hops(self, origin: str) -> int:
        """How many hops a change that `origin` now reports has come: one more than what it may be the answer to.

        Its own last change was never sent to it, so it cannot answer that one; and what comes after an hour or more is
        a person's work, not the answer of one program to another: people may pass a case to and fro as they like.
        """
        if self.last_age_s > _ANSWERED_WITHIN_S:
            return 1
        return max(1, self.last_hops) if self.last_origin == origin else self.last_hops + 1


@dataclass(frozen=True, slots=True)
class Noted:
    """What became of an observation: the outcome for the inbox, and the case whose last remote status it now is."""

    observation: Observation
    outcome: str
    case_id: UUID | None


async def position(connection: asyncpg.Connection, recipient: str, *, timeout_s: float) -> datetime | None:
    """Up to when the recipient was read, or None before the first time."""
    found: datetime | None = await connection.fetchval(_POSITION, recipient, timeout=timeout_s)
    return found


async def known_of(
    connection: asyncpg.Connection, source: str, recipient: str, page: Sequence[Observation], *, timeout_s: float
) -> list[Known]:
    """One answer an observation, in their order."""
    rows = await connection.fetch(
        _KNOWN,
        source,
        [observation.message_id for observation in page],
        [observation.reference for observation in page],
        recipient,
        timeout=timeout_s,
    )
    return [_known(row) for row in rows]


async def settle(
    connection: asyncpg.Connection,
    source: str,
    recipient: str,
    noted: Sequence[Noted],
    read_to: Observation | None,
    *,
    timeout_s: float,
) -> None:
    """Ends a page: its outcomes, the statuses last seen and, when it may move, the position, in one transaction."""
    linked = [note for note in noted if note.case_id is not None]
    async with connection.transaction():
        await connection.execute(
            _REMEMBER,
            source,
            [note.observation.message_id for note in noted],
            [note.outcome for note in noted],
            timeout=timeout_s,
        )
        await connection.execute(
            _BASE,
            recipient,
            [note.case_id for note in linked],
            [note.observation.code for note in linked],
            timeout=timeout_s,
        )
        if read_to is not None:
            await connection.execute(_ADVANCE, recipient, read_to.modified, read_to.remote_id, timeout=timeout_s)


def _known(row: Any) -> Known:
    return Known(
        seen=row["seen"],
        case_id=row["case_id"],
        case_type=row["case_type"],
        version=row["version"] or 0,
        status=row["status"] or "",
        correlation_id=row["correlation_id"] or "",
        linked=row["linked"],
        remote_status=row["remote_status"],
        last_origin=row["last_origin"] or "",
        last_hops=row["last_hops"] or 0,
        last_age_s=row["last_age_s"] or 0.0,
    )
