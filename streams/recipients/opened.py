"""Opens the personal part of events, for as long as one batch takes.

A case whose key was destroyed reads as erased: it flows on, without anything personal. That is no error, and it also
takes away at the recipient what is sent as the default of a personal field.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from streams.cases.keys import CaseKeys, open_personal
from streams.errors import Misconfigured, Rejected
from streams.events import CaseEvent
from streams.outages import DATABASE_ERRORS
from streams.sealing import Sealer

Sealers = Mapping[UUID, Sealer | Rejected | None]


@dataclass(frozen=True, slots=True)
class Opened:
    """The personal part of one event; empty once the person was erased."""

    personal: dict[str, Any]
    erased: bool = False


_ERASED = Opened({}, erased=True)


async def open_events(
    keys: CaseKeys, pool: asyncpg.Pool, events: Sequence[CaseEvent], *, timeout_s: float
) -> dict[UUID, Opened | Rejected]:
    """By event id: what opened, or why that one event cannot be read. One question for all keys."""
    async with asyncio.timeout(timeout_s), pool.acquire() as connection:
        sealers = await _sealers(keys, connection, {event.case_id for event in events})
    missing = Rejected("the case has no key, and no record of its erasure", "sealed")
    return {event.event_id: _opened(event, sealers.get(event.case_id, missing)) for event in events}


def _opened(event: CaseEvent, sealer: Sealer | Rejected | None) -> Opened | Rejected:
    if sealer is None:
        return _ERASED
    if isinstance(sealer, Rejected):
        return Rejected(sealer.reason, sealer.field)
    try:
        return Opened(open_personal(sealer, event.case_id, event.sealed))
    except Exception:  # noqa: BLE001 - a sealer raises errors of its own; each says that these bytes are not this case's
        return Rejected("the personal part does not open with the case's key", "sealed")


async def _sealers(keys: CaseKeys, connection: asyncpg.Connection, case_ids: set[UUID]) -> Sealers:
    """The case keys; when the ring fails at some of them, those alone are refused."""
    try:
        return await keys.many(connection, case_ids)
    except DATABASE_ERRORS:
        raise
    except Exception:  # noqa: BLE001 - the ring raises errors of its own, for the first key that does not open
        return await _sealers_one_by_one(keys, connection, case_ids)


async def _sealers_one_by_one(keys: CaseKeys, connection: asyncpg.Connection, case_ids: set[UUID]) -> Sealers:
    found: dict[UUID, Sealer | Rejected | None] = {}
    for case_id in case_ids:
        try:
            found |= await keys.many(connection, [case_id])
        except DATABASE_ERRORS:
            raise
        except Exception:  # noqa: BLE001 - as above
            found[case_id] = Rejected("the key ring does not open the case's key", "sealed")
    if len(found) > 1 and all(isinstance(one, Rejected) for one in found.values()):
        # not the cases: a ring without the key they were wrapped with, which would park every case there is
        raise Misconfigured("the key ring opens none of the cases' keys")
    return found
