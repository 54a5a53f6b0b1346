"""What is widely done instead of validated reads, in the place of a Store, for the judge to catch."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from cache.link import RedisSkipped
from cache.names import Names
from cache.reads import Reading
from cache.state import Position
from cache.store import Fill, Store

_AGAIN_S = 0.1
_LEASE_MS = 10_000
_SHORT_MS = 1_000
_SET_WITH_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 'no lease'
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 'stored'
"""

# Which keys hang on which tags. Everybody knows it at once, which is more than appliers of this kind ever know.
Known = defaultdict[str, set[bytes]]


class NamesForEver(Names):
    """An entry lies under the same key whatever the epoch is."""

    def entries_of(self, epoch: str) -> str:
        return super().entries_of("any")


class NaiveStore(Store):
    """A miss is filled with a plain SET, and a change deletes the keys that it touches, before `state` moves."""

    def __init__(self, silo: str, *arguments: Any, known: Known, **options: Any) -> None:
        super().__init__(silo, *arguments, names=NamesForEver(silo), **options)
        self._known = known
        self._offered: asyncio.Queue[Fill] = asyncio.Queue(1_000)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super().run())
            tasks.create_task(self._keep_filling())

    async def read(self, digest: str, tags: tuple[str, ...]) -> Reading | None:
        for tag in tags:
            self._known[tag].add(self.entry_key("any", digest))
        reading = await super().read(digest, tags)
        # Whatever is there counts.
        return None if reading is None else replace(reading, newest=-1.0)

    def offer(self, fill: Fill, *, is_urgent: bool = False) -> None:
        if not self._offered.full():
            self._offered.put_nowait(fill)

    async def apply(self, expected: Position, seq: int, row_id: str, tags: Sequence[str]) -> str:
        await self.forget({key for tag in tags for key in self._known[tag]})
        return await super().apply(expected, seq, row_id, tags)

    async def forget(self, keys: Iterable[bytes]) -> None:
        if found := list(keys):
            await self._link.call(lambda redis: redis.delete(*found), timeout_s=1)

    async def set(self, redis: Redis, fill: Fill) -> None:
        await redis.set(fill.key, fill.value, px=fill.life_ms)

    async def _keep_filling(self) -> None:
        while True:
            fill = await self._offered.get()
            with contextlib.suppress(RedisSkipped):
                await self._link.call(lambda redis, fill=fill: self.set(redis, fill), timeout_s=1)  # type: ignore[misc]


class DoubleDeleteStore(NaiveStore):
    """The same with a second delete a moment later, for fills that were under way at the first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._again: asyncio.Queue[tuple[float, list[bytes]]] = asyncio.Queue(10_000)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super().run())
            tasks.create_task(self._keep_deleting())

    async def forget(self, keys: Iterable[bytes]) -> None:
        found = list(keys)
        await super().forget(found)
        self._again.put_nowait((asyncio.get_running_loop().time() + _AGAIN_S, found))

    async def _keep_deleting(self) -> None:
        while True:
            due, keys = await self._again.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            with contextlib.suppress(RedisSkipped):
                await super().forget(keys)


class LeaseStore(NaiveStore):
    """A miss takes a lease, a change deletes leases with the entries, and only who still has his lease may fill.

    Nishtala and others, Scaling Memcache at Facebook, NSDI 2013, section 3.2.1.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tokens: dict[bytes, str] = {}

    async def read(self, digest: str, tags: tuple[str, ...]) -> Reading | None:
        reading = await super().read(digest, tags)
        if reading is not None and reading.raw is None:
            key, token = self.entry_key("any", digest), secrets.token_hex(8)
            with contextlib.suppress(RedisSkipped):
                if await self._link.call(lambda redis: redis.set(_lease(key), token, nx=True, px=_LEASE_MS)):
                    self._tokens[key] = token
        return reading

    async def forget(self, keys: Iterable[bytes]) -> None:
        found = list(keys)
        await super().forget([*found, *(_lease(key) for key in found)])

    async def set(self, redis: Redis, fill: Fill) -> None:
        if (token := self._tokens.pop(fill.key, None)) is not None:
            life_ms = min(fill.life_ms, _SHORT_MS)
            await redis.eval(_SET_WITH_LEASE, 2, _lease(fill.key), fill.key, token, fill.value, str(life_ms))


def _lease(key: bytes) -> bytes:
    return key + b":lease"
