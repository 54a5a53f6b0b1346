"""Real servers for the tests, started once a run by the project itself, and fresh databases on them."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import sys
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from gateway.dev.addresses import Database, Servers
from gateway.dev.stack import Stack, StackFailed, start_stack

_PROJECT = Path(__file__).resolve().parents[1]
_STACK: pytest.StashKey[Stack] = pytest.StashKey()
_LOGICAL_DATABASES = itertools.cycle(range(1, 512))


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Start the servers before the first test where a test wants them.

    Here and not in a fixture, because the first run fetches Kafka, which on a slow line takes longer than the time-out
    of a test, and because its progress can be shown here.
    """
    # the session that only hands tests out to others (pytest -n) has no items
    items = getattr(session, "items", ())
    wanted = any({"stack", "servers"} & set(getattr(item, "fixturenames", ())) for item in items)
    if not wanted or session.config.option.collectonly:
        return (yield)

    def show(_server: str, text: str) -> None:
        if text.startswith("fetching") and sys.__stderr__ is not None:
            end = "\r" if sys.__stderr__.isatty() else "\n"
            print(text, end=end, file=sys.__stderr__, flush=True)

    try:
        with start_stack(_PROJECT / ".silogate" / f"test-{os.getpid()}", ephemeral=True, on_progress=show) as stack:
            session.config.stash[_STACK] = stack
            return (yield)
    except StackFailed as failure:
        pytest.exit(f"the servers of the tests did not start: {failure}", returncode=1)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Stack:
    """The servers of this run with the switches that stop, kill, freeze and start them again."""
    return request.config.stash[_STACK]


@pytest.fixture(scope="session")
def servers(stack: Stack) -> Servers:
    """Addresses of PostgreSQL with a streaming replica, Valkey, Kafka and SMTP: real ones, for this run only."""
    return stack.servers


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[Database]:
    """A database of the test's own, on the primary and already on the replica; dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    await _administer(servers, f'CREATE DATABASE "{name}"')
    await _wait_for_replica(servers)
    yield Database(_with_database(servers.postgres_url, name), _with_database(servers.replica_url, name))
    await _administer(servers, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def gateway_database(database: Database, servers: Servers) -> Database:
    """A database of the test's own with the gateway's schema in it."""
    from streams.sql.migrate import migrate

    connection = await asyncpg.connect(database.url)
    try:
        await migrate(connection)
    finally:
        await connection.close()
    await _wait_for_replica(servers)
    return database


@pytest.fixture
async def redis_url(servers: Servers) -> str:
    """A logical database of the test's own on Valkey, empty."""
    url = f"{servers.redis_url.rsplit('/', 1)[0]}/{next(_LOGICAL_DATABASES)}"
    async with Redis.from_url(url) as redis:
        await redis.flushdb()
    return url


@pytest.fixture
def topic_prefix() -> str:
    """Put before topic and group names, so that no test sees another's messages."""
    return f"t{secrets.token_hex(4)}."


async def _administer(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        await connection.execute(statement, timeout=60)
    finally:
        await connection.close()


async def _wait_for_replica(servers: Servers) -> None:
    """Return once the replica has replayed what the primary has written by now."""
    primary = await asyncpg.connect(servers.postgres_url, timeout=10)
    replica = await asyncpg.connect(servers.replica_url, timeout=10)
    try:
        position = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(30):
            while not await replica.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position):
                await asyncio.sleep(0.01)
    finally:
        await primary.close()
        await replica.close()


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
