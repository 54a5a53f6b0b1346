"""The development servers are real, take orders, and end with whoever owns them."""

from __future__ import annotations

import asyncio
import email
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosmtplib
import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.dev.addresses import Database, Servers
from gateway.dev.stack import Stack, StackFailed
from streams.outages import DATABASE_ERRORS


async def _eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def _names(connection: asyncpg.Connection[Any]) -> list[str]:
    return [row["name"] for row in await connection.fetch("SELECT name FROM toilet ORDER BY name")]


async def test_the_replica_follows_and_lags_on_demand(stack: Stack, database: Database) -> None:
    """What is written on the primary arrives on the replica, later when its replay is paused; it takes no writes."""
    primary, replica = await asyncpg.connect(database.url), await asyncpg.connect(database.replica_url)
    await primary.execute("CREATE TABLE toilet (name text)")
    await primary.execute("INSERT INTO toilet VALUES ('Beach Green')")

    async def replica_has_it() -> bool:
        return bool(await replica.fetchval("SELECT to_regclass('toilet')")) and await _names(replica) == ["Beach Green"]

    await _eventually(replica_has_it)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await replica.execute("INSERT INTO toilet VALUES ('Coronation Green')")

    await stack.control("replica", "pause")
    try:
        await primary.execute("INSERT INTO toilet VALUES ('Coronation Green')")
        assert await _names(replica) == ["Beach Green"]
    finally:
        await stack.control("replica", "resume")

    async def replica_caught_up() -> bool:
        return await _names(replica) == ["Beach Green", "Coronation Green"]

    await _eventually(replica_caught_up)
    await primary.close()
    await replica.close()


async def test_postgres_recovers_from_a_crash(stack: Stack, database: Database) -> None:
    """After an immediate stop a commit is still there, at the same address, and the replica follows again."""
    connection = await asyncpg.connect(database.url)
    await connection.execute("CREATE TABLE toilet (name text)")
    await connection.execute("INSERT INTO toilet VALUES ('Beach Green')")

    await stack.control("postgres", "crash")

    with pytest.raises(DATABASE_ERRORS):
        await connection.fetch("SELECT 1")
    connection.terminate()
    connection = await asyncpg.connect(database.url)
    assert await _names(connection) == ["Beach Green"]
    await connection.execute("INSERT INTO toilet VALUES ('Coronation Green')")
    await connection.close()
    replica = await asyncpg.connect(database.replica_url)

    async def replica_caught_up() -> bool:
        return await _names(replica) == ["Beach Green", "Coronation Green"]

    await _eventually(replica_caught_up)
    await replica.close()


async def test_valkey_restarts_empty_at_the_same_address(stack: Stack, redis_url: str) -> None:
    """A restart of Valkey is the loss of a cache: the same address, and nothing in it."""
    async with Redis.from_url(redis_url) as redis:
        await redis.set("toilet:60001449", "Beach Green")
    await stack.control("valkey", "restart")
    async with Redis.from_url(redis_url) as redis:
        assert await redis.get("toilet:60001449") is None


async def test_a_frozen_valkey_keeps_its_sockets_and_says_nothing(stack: Stack, redis_url: str) -> None:
    """Freezing shows a client a server that hangs, not one that is gone; thawed, it answers again."""
    async with Redis.from_url(redis_url, socket_timeout=0.2, retry=None) as redis:
        await redis.set("toilet:60001449", "Beach Green")
        await stack.control("valkey", "freeze")
        with pytest.raises(RedisTimeoutError):
            await redis.get("toilet:60001449")
        await stack.control("valkey", "thaw")
        assert await redis.get("toilet:60001449") == b"Beach Green"


async def test_kafka_keeps_a_record_over_a_crash(stack: Stack, servers: Servers, topic_prefix: str) -> None:
    """A record that was acknowledged is read after the broker was killed; topics are never made by accident."""
    topic = f"{topic_prefix}cases"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)
    await admin.start()
    assert topic not in await admin.list_topics()
    await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=servers.kafka_bootstrap, acks="all") as producer:
        await producer.send_and_wait(topic, b"litter", key=b"RAP-7KQ2-93XD")

    await stack.control("kafka", "crash")

    async with AIOKafkaConsumer(
        topic, bootstrap_servers=servers.kafka_bootstrap, group_id=f"{topic_prefix}team", auto_offset_reset="earliest"
    ) as consumer:
        record = await asyncio.wait_for(consumer.getone(), 30)
    assert (record.key, record.value) == (b"RAP-7KQ2-93XD", b"litter")


async def test_a_message_ends_up_in_the_maildir(servers: Servers) -> None:
    """What is sent by SMTP lies in the Maildir, and goes nowhere else."""
    message = "Subject: Your report RAP-7KQ2-93XD\r\n\r\nThank you.\r\n"
    await aiosmtplib.send(
        message.encode(),
        sender="reports@council.example",
        recipients=["resident@home.example"],
        hostname=servers.smtp_host,
        port=servers.smtp_port,
        timeout=10,
    )
    subjects = [email.message_from_bytes(path.read_bytes())["Subject"] for path in (servers.maildir / "new").iterdir()]
    assert "Your report RAP-7KQ2-93XD" in subjects


async def test_an_order_that_makes_no_sense_is_refused(stack: Stack) -> None:
    """An order that cannot be carried out is refused with its reason, and the next one is carried out."""
    with pytest.raises(StackFailed, match="valkey: it cannot 'pause'"):
        await stack.control("valkey", "pause")
    with pytest.raises(StackFailed, match="several processes"):
        await stack.control("postgres", "freeze")
    with pytest.raises(StackFailed, match="it is running already"):
        await stack.control("smtp", "start")
    await stack.control("smtp", "restart")


async def test_a_test_has_a_database_of_its_own(gateway_database: Database, servers: Servers) -> None:
    """The gateway's schema is in a database that only this test has, on the primary and on the replica."""
    for url in (gateway_database.url, gateway_database.replica_url):
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT count(*) FROM gateway.cases") == 0
        await connection.close()
    connection = await asyncpg.connect(servers.postgres_url)
    assert await connection.fetchval("SELECT to_regnamespace('gateway')") is None
    await connection.close()


def test_the_passwords_are_for_the_owner_only(stack: Stack) -> None:
    """The file with the passwords is 0600 in a 0700 folder, and no command line shows one."""
    state = stack.root / "state.json"
    assert state.stat().st_mode & 0o777 == 0o600
    assert stack.root.stat().st_mode & 0o777 == 0o700
    password = stack.servers.postgres_url.split(":")[2].split("@")[0]
    assert password in state.read_text()
    readable = [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [path for path in readable if password.encode() in _bytes(path)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
