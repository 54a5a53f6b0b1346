"""What the peers of P7 share: the case of a record opened, mapped by hand and written by one versioned upsert.

https://magicstack.github.io/asyncpg/current/api/index.html and https://cryptography.io/en/latest/hazmat/primitives/aead/
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.load.bench_mapping import by_hand

KAFKA, TOPIC, GROUP = (os.environ[f"BENCH_{name}"] for name in ("KAFKA", "TOPIC", "GROUP"))
_RING = AESGCM(base64.b64decode(os.environ["BENCH_RING"]))
_UPSERT = os.environ["BENCH_UPSERT"]
_KEYS = "select case_id, wrapped from gateway.case_key where case_id = any($1)"


class JobTable:
    """Many events at once: of each case the newest, which in a partition is the last."""

    def __init__(self, gateway: asyncpg.Pool, recipient: asyncpg.Pool) -> None:
        self._gateway, self._recipient = gateway, recipient

    async def apply(self, bodies: Sequence[dict[str, Any]]) -> None:
        newest = {UUID(body["case_id"]): body for body in bodies}
        wrapped = await self._gateway.fetch(_KEYS, list(newest))
        keys = {row["case_id"]: _open(_RING, row["wrapped"], b"case-key:", row["case_id"]) for row in wrapped}
        rows = []
        for case_id, body in newest.items():
            sealed = base64.b64decode(body["sealed"])
            personal = orjson.loads(_open(AESGCM(keys[case_id]), sealed, b"case:", case_id))
            row = by_hand({**body["document"], **personal})
            rows.append((body["reference"], body["version"], *row.values()))
        await self._recipient.execute(_UPSERT, *zip(*rows, strict=True))


def _open(cipher: AESGCM, sealed: bytes, what: bytes, case_id: UUID) -> bytes:
    return cipher.decrypt(sealed[:12], sealed[12:], what + case_id.bytes)


@asynccontextmanager
async def job_table() -> AsyncIterator[JobTable]:
    async with (
        asyncpg.create_pool(os.environ["BENCH_GATEWAY"], min_size=1, max_size=4) as gateway,
        asyncpg.create_pool(os.environ["BENCH_RECIPIENT"], min_size=1, max_size=4) as recipient,
    ):
        yield JobTable(gateway, recipient)
