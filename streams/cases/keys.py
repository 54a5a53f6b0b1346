"""One key per case: what is personal in a case opens only with it, and erasing a person is destroying it."""

import os
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from streams.sealing import Sealer

_KEY_BYTES = 32


class Erased(Exception):
    """The case's key was destroyed on request: its personal part is gone for good, and that is no fault."""


class KeyMissing(Exception):
    """There is no key and no record of its erasure: a restore without the key table, or a case that never was."""


class CaseKeys:
    """Makes and finds case keys, which lie in case_key, wrapped by `ring`; `sealer_of` makes a cipher of one."""

    def __init__(self, ring: Sealer, sealer_of: Callable[[bytes], Sealer]) -> None:
        self._ring = ring
        self._sealer_of = sealer_of

    async def new(self, connection: asyncpg.Connection, case_id: UUID) -> Sealer:
        """Makes the key of a new case inside the caller's transaction."""
        key = os.urandom(_KEY_BYTES)
        wrapped = self._ring.seal(key, bound_to=_bound_to(case_id))
        await connection.execute("insert into case_key (case_id, wrapped) values ($1, $2)", case_id, wrapped)
        return self._sealer_of(key)

    async def of(self, connection: asyncpg.Connection | asyncpg.Pool, case_id: UUID) -> Sealer:
        """The case's sealer; raises Erased or KeyMissing."""
        found = await self.many(connection, [case_id])
        if case_id not in found:
            raise KeyMissing
        sealer = found[case_id]
        if sealer is None:
            raise Erased
        return sealer

    async def many(
        self, connection: asyncpg.Connection | asyncpg.Pool, case_ids: Iterable[UUID]
    ) -> dict[UUID, Sealer | None]:
        """The sealers of many cases in one query: None for an erased one, and a case without a key is left out."""
        rows = await connection.fetch(
            "select case_id, wrapped from case_key where case_id = any($1)", list(set(case_ids))
        )
        return {row["case_id"]: self._unwrap(row["case_id"], row["wrapped"]) for row in rows}

    def _unwrap(self, case_id: UUID, wrapped: bytes | None) -> Sealer | None:
        if wrapped is None:
            return None
        return self._sealer_of(self._ring.open(wrapped, bound_to=_bound_to(case_id)))


def seal_personal(sealer: Sealer, case_id: UUID, personal: dict[str, Any]) -> bytes:
    """The personal part of a case as it is stored and sent."""
    return sealer.seal(orjson.dumps(personal), bound_to=b"case:" + case_id.bytes)


def open_personal(sealer: Sealer, case_id: UUID, sealed: bytes) -> dict[str, Any]:
    """The personal part again; raises what the sealer raises for bytes that are not this case's."""
    personal = orjson.loads(sealer.open(sealed, bound_to=b"case:" + case_id.bytes))
    if not isinstance(personal, dict):
        raise TypeError("the personal part of a case is an object")
    return personal


def _bound_to(case_id: UUID) -> bytes:
    return b"case-key:" + case_id.bytes
