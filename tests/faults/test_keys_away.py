"""While the database hangs, those whose keys are known are let in at once, and answers that are at hand go out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import asyncpg
import pytest
import structlog

import gateway.auth
from gateway.auth import KEEP_S, OUTAGE_S, ApiKeys, Unauthenticated
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.faults.frozen_postgres import frozen
from tests.integration.direct_world import CRABTREE, PATH, both_ways, get

pytestmark = pytest.mark.faults


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=4, timeout=5, server_settings={"search_path": "gateway"}
    ) as made:
        yield made


async def _timed(work: Awaitable[object]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def test_known_keys_outlive_a_hung_database_but_not_for_ever(pool: asyncpg.Pool, stack: Stack) -> None:
    """The first waits for the look that fails, the next ones for nothing, until the snapshot is too old for anybody."""
    clock = _Clock()
    keys = ApiKeys(pool, clock)
    known = f"Bearer {await keys.add('form', ['lookups:*'])}"
    unknown = "Bearer sg_aaaaaaaaaaaa_" + "x" * 43
    principal = await keys.principal(known)
    with frozen(stack, "postgres"):
        clock.now += KEEP_S + 1
        assert keys.known(known) is None, "nobody knows yet that the database is away"
        assert await _timed(keys.principal(known)) < 3
        assert keys.known(known) == principal
        with pytest.raises(TimeoutError):
            await keys.principal(unknown)
        with pytest.raises(Unauthenticated):
            keys.known(known[:-1] + ("a" if known[-1] != "a" else "b"))
        clock.now += OUTAGE_S
        assert keys.known(known) is None
        with pytest.raises(TimeoutError):
            await keys.principal(known)
    assert await keys.revoke(principal.id)
    with pytest.raises(Unauthenticated):
        await keys.principal(known)


async def test_a_key_revoked_elsewhere_is_out_within_its_time_once_the_database_is_back(
    pool: asyncpg.Pool, stack: Stack
) -> None:
    """An outage that is over lets nobody in for longer."""
    clock = _Clock()
    here, elsewhere = ApiKeys(pool, clock), ApiKeys(pool)
    token = await here.add("form", ["lookups:*"])
    principal = await here.principal(f"Bearer {token}")
    with frozen(stack, "postgres"):
        clock.now += KEEP_S + 1
        assert await here.principal(f"Bearer {token}") == principal
    assert await elsewhere.revoke(principal.id)
    clock.now += KEEP_S + 1
    with pytest.raises(Unauthenticated):
        await here.principal(f"Bearer {token}")


async def test_hits_go_on_at_once_and_misses_are_refused_in_time_while_the_silo_hangs(
    gateway_database: Database, redis_url: str, tmp_path: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits say how old they may be; a miss is 503 before its deadline; afterwards all is as before."""
    monkeypatch.setattr(gateway.auth, "KEEP_S", 1.0)
    monkeypatch.setattr(gateway.auth, "_RENEW_EVERY_S", 0.2)
    monkeypatch.setattr(gateway.auth, "_READ_S", 0.3)
    structlog.configure(processors=[structlog.processors.JSONRenderer(default=str)])
    async with both_ways(gateway_database, redis_url, tmp_path) as ways:
        await ways.warm(CRABTREE)
        renewing = asyncio.create_task(ways.edge.context.keys.run())
        try:
            with frozen(stack, "postgres"):
                hung = time.monotonic()
                took, bounds = [], []
                while time.monotonic() - hung < 2.5:
                    for port in (ways.short, ways.long):
                        started = time.monotonic()
                        said = await ways.say(port, get(PATH + CRABTREE, close=True))
                        took.append(time.monotonic() - started)
                        assert said.startswith(b"HTTP/1.1 200 "), said[:200]
                        assert b"; hit" in said
                        bounds.append(int(said.split(b"Silogate-Staleness-Bound-Ms: ")[1].split(b"\r\n")[0]))
                    await asyncio.sleep(0.05)
                assert max(took) < 0.5
                assert bounds[-1] > 2_000, "the bound grows while the primary says nothing"
                for port in (ways.short, ways.long):
                    started = time.monotonic()
                    said = await ways.say(port, get(PATH + "BN43 5TE", close=True))
                    assert said.startswith(b"HTTP/1.1 503 "), said[:200]
                    assert time.monotonic() - started < 2.2
            async with asyncio.timeout(5):
                said = b""
                while not said.startswith(b"HTTP/1.1 200 "):
                    said = await ways.say(ways.short, get(PATH + "BN43 5TE", close=True))
        finally:
            structlog.reset_defaults()
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
