"""Fills that wait for Redis are bounded by their bytes as well as by their number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.state import Position
from cache.store import LARGEST_ENTRY, Fill, Store
from cache.wire import Command

_MIB = 1 << 20


class Link:
    """A Redis that takes every fill, once its door is open, and notes how many bytes came at a time."""

    skipped = False

    def __init__(self) -> None:
        self.door = asyncio.Event()
        self.batches: list[list[int]] = []

    async def send(
        self, commands: Sequence[Command], _script: str, read: Callable[[list[bytes]], list[str]], *, timeout_s: float
    ) -> list[str]:
        assert timeout_s > 0
        self.batches.append([max(len(word) for word in one if isinstance(word, bytes)) for one in commands])
        await self.door.wait()
        return read([b"stored"] * len(commands))


def _fill(n: int, size: int) -> Fill:
    return Fill(Position("e1", 1, "id", "d"), b"lk:%d" % n, bytes(size), ("t",), 1000, replace=False)


@pytest.mark.parametrize(
    ("size", "offered", "kept", "most"),
    [(LARGEST_ENTRY, 100, 32, 4), (3 * _MIB // 4, 100, 42, 6), (10, 2_500, 2_000, 50)],
    ids=["largest", "large", "small"],
)
async def test_what_waits_for_a_slow_redis_has_a_bound_and_goes_in_parts(
    size: int, offered: int, kept: int, most: int
) -> None:
    """32 MiB may wait, and 4 MiB make a batch; all else is dropped and counted, and what went makes room."""
    registry, link = CollectorRegistry(), Link()
    store = Store("town", "d", cast("RedisLink", link), CacheMetrics(registry))

    def counted(outcome: str) -> float:
        labels = {"silo": "town", "outcome": outcome}
        return registry.get_sample_value("silogate_cache_fills_total", labels) or 0.0

    for times in (1, 2):
        for n in range(offered):
            store.offer(_fill(n, size))
        assert counted("dropped") == times * (offered - kept)
        running = asyncio.create_task(store.run())
        link.door.set()
        async with asyncio.timeout(5):
            while counted("stored") < times * kept:
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert max(len(sizes) for sizes in link.batches) == most
    assert max(sum(sizes) for sizes in link.batches) <= 4 * _MIB + size
