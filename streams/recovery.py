"""The bolt: while Kafka knows more than the gateway's database, nothing is written, until somebody recovers it.

A database that was restored to an earlier moment would hand out versions a second time and repeat what it did since.
The row in `shut` makes it refuse: triggers keep cases and effects from being written by any process, at once.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import asyncpg
import orjson

# The first reason stays: what follows from it would only hide it.
_SHUT = "insert into shut (reason, detail) values ($1, $2) on conflict do nothing"
_IS_SHUT = "select reason, detail, at from shut"


class Shut(Exception):
    """Nothing may be handled until the gateway is recovered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShutRow(NamedTuple):
    """Why the gateway is shut, what showed it, and since when."""

    reason: str
    detail: dict[str, object]
    at: datetime


async def shut(pool: asyncpg.Pool, reason: str, detail: Mapping[str, object], *, timeout_s: float = 10.0) -> None:
    """Shuts the gateway for every process; to do it again changes nothing. No personal value in `detail`."""
    async with asyncio.timeout(timeout_s):
        await pool.execute(_SHUT, reason, orjson.dumps(dict(detail)).decode())


async def is_shut(pool: asyncpg.Pool, *, timeout_s: float = 10.0) -> ShutRow | None:
    """Why the gateway is shut; None when it is not."""
    async with asyncio.timeout(timeout_s):
        row = await pool.fetchrow(_IS_SHUT)
    return None if row is None else ShutRow(row["reason"], orjson.loads(row["detail"]), row["at"])
