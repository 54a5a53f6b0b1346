"""The model's reader asks Redis in the order in which the real one does, for that order is what makes it right."""

from __future__ import annotations

import asyncio
import contextlib

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.state import Position
from cache.store import Store
from tests.model.moves import Model

_SILO = "read-in-order"
_KEYS = {
    "state": f"silogate:{{{_SILO}}}:state",
    "entry": f"silogate:{{{_SILO}}}:lk:",
    "tags": f"silogate:{{{_SILO}}}:tags",
}


async def test_the_store_reads_state_then_entries_then_tags_with_the_mark(redis_url: str) -> None:
    """Read later than the tags, the state would promise what they do not show; without the mark they may be lost."""
    metrics = CacheMetrics(CollectorRegistry())
    link = RedisLink(redis_url, metrics)
    store = Store(_SILO, "d", link, metrics)
    running = asyncio.create_task(store.run())
    try:
        assert await store.begin_epoch(b"", Position("e1", 0, "i", "d"), "s1", 0) == "begun"
        # The first read learns the epoch, so that the second is one round trip.
        await store.read("digest", ("tag",))
        async with Redis.from_url(redis_url) as other, other.monitor() as monitor:
            await store.read("digest", ("tag",))
            parts: list[str] = []
            command = ""
            while parts[-1:] != ["tags"]:
                command = await _next(monitor)
                parts += [part for part, key in _KEYS.items() if key in command]
        assert tuple(parts) == Model.order
        assert command.split(" ")[2:] == ["=e1", "tag"]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await link.close()


async def _next(monitor: object) -> str:
    async with asyncio.timeout(10):
        command: dict[str, str] = await monitor.next_command()  # type: ignore[attr-defined]
    return command["command"]
