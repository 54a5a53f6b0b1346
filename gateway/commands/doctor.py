"""`silogate doctor`: connects to each dependency and says its version, its lag and what is wrong."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiosmtplib
import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cache.seal import KeyRing
from gateway.console import as_json, people
from gateway.integrations import read_folders
from gateway.settings import Settings
from streams.outages import DATABASE_ERRORS
from streams.silos.declaration import SiloDeclaration
from streams.sinks.notifications.smtp import BadServer, MailServer
from streams.topics import changes_topic

_DEADLINE_S = 5.0
_LAG_LIMIT_S = 10.0
_LAST_LOAD = """
select source_time, rejected, extract(epoch from now() - source_time)::float8 as age
from load where completed is not null order by id desc limit 1
"""


@dataclass(slots=True)
class Finding:
    """One dependency: what answered, and each thing wrong with it as a sentence with its fix."""

    name: str
    detail: str = ""
    problems: list[str] = field(default_factory=list)


async def examine(settings: Settings, *, json: bool) -> int:
    """Print every finding; 0 when nothing is wrong, else 1."""
    checks: list[tuple[str, Callable[[Finding], Awaitable[None]]]] = [
        ("settings and folders", lambda found: _folders(found, settings)),
        ("postgresql primary", lambda found: _primary(found, settings)),
        *(
            (f"postgresql replica {number}", lambda found, url=url: _replica(found, settings, url))
            for number, url in enumerate(settings.replicas, 1)
            if settings.replica_urls
        ),
        ("redis", lambda found: _redis(found, settings)),
        ("kafka", lambda found: _kafka(found, settings)),
        ("smtp", lambda found: _smtp(found, settings)),
        *(
            (f"silo {name}", lambda found, silo=silo: _silo(found, settings, silo))
            for name, silo in read_folders(settings.integrations, settings.silos).silos.items()
        ),
        *(
            (f"recipient {name}", lambda found, url=url: _recipient(found, url.get_secret_value()))
            for name, url in settings.recipients.items()
        ),
    ]
    findings = await asyncio.gather(*(_guarded(name, check) for name, check in checks))
    if json:
        as_json(
            [
                {"name": one.name, "ok": not one.problems, "detail": one.detail, "problems": one.problems}
                for one in findings
            ]
        )
    else:
        _print(findings)
    return 1 if any(finding.problems for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        mark = "[red]✗[/]" if finding.problems else "[green]✓[/]"
        people.print(f"{mark} {finding.name}: {finding.detail or 'no answer'}")
        for problem in finding.problems:
            people.print(f"    {problem}", markup=False)


async def _guarded(name: str, check: Callable[[Finding], Awaitable[None]]) -> Finding:
    finding = Finding(name)
    try:
        async with asyncio.timeout(_DEADLINE_S):
            await check(finding)
    except TimeoutError:
        finding.problems.append(f"did not answer within {_DEADLINE_S:g} s: check its address and the network between")
    except (
        *DATABASE_ERRORS,
        RedisError,
        KafkaError,
        aiosmtplib.SMTPException,
    ) as error:
        # the driver's own words, but never its arguments: an address may hold a password
        finding.problems.append(f"cannot be used ({type(error).__name__}): {_first_line(error)}")
    return finding


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:200]


async def _folders(found: Finding, settings: Settings) -> None:
    folders = read_folders(settings.integrations, settings.silos)
    found.detail = folders.summary()
    found.problems += [str(problem) for problem in folders.problems]
    found.problems += [*_wrong_ring(settings), *_wrong_blobs(settings)]
    for integration in folders.integrations:
        found.problems += [
            f"SILOGATE_RECIPIENT_{name.upper().replace('-', '_')}_URL is not set: {integration.name} delivers to {name}"
            for name in integration.recipients
            if name not in settings.recipients
        ]


def _wrong_ring(settings: Settings) -> list[str]:
    try:
        KeyRing.parse(settings.key_ring.get_secret_value())
    except ValueError as error:
        return [f"SILOGATE_KEY_RING: {error}"]
    return []


def _wrong_blobs(settings: Settings) -> list[str]:
    try:
        settings.blobs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"SILOGATE_BLOBS: {settings.blobs} cannot be made: {error.strerror}"]
    if not os.access(settings.blobs, os.W_OK | os.X_OK):
        return [f"SILOGATE_BLOBS: {settings.blobs} cannot be written to"]
    return []


async def _primary(found: Finding, settings: Settings) -> None:
    connection = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=_DEADLINE_S)
    try:
        found.detail = await connection.fetchval("select 'PostgreSQL ' || current_setting('server_version')")
        if await connection.fetchval("select pg_is_in_recovery()"):
            found.problems.append("is a standby; SILOGATE_DATABASE_URL must name the primary")
        if await connection.fetchval("select to_regclass('gateway.cases')") is None:
            found.problems.append("has no gateway schema yet; `silogate serve` or `silogate work` makes it")
        if await connection.fetchval("select count(*) from pg_roles where rolname = $1", settings.lookup_role) == 0:
            found.problems.append(f"has no role {settings.lookup_role}; `silogate serve` or `silogate work` makes it")
    finally:
        await connection.close(timeout=_DEADLINE_S)


async def _replica(found: Finding, settings: Settings, url: str) -> None:
    primary = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=_DEADLINE_S)
    replica = await asyncpg.connect(url, timeout=_DEADLINE_S)
    try:
        tip = await primary.fetchval("select pg_current_wal_lsn()::text")
        row = await replica.fetchrow(
            "select current_setting('server_version') as version, pg_is_in_recovery() as standby,"
            " pg_wal_lsn_diff($1::text::pg_lsn, pg_last_wal_replay_lsn()) as behind,"
            " extract(epoch from now() - pg_last_xact_replay_timestamp())::float8 as age",
            tip,
        )
        if not row["standby"]:
            found.detail = f"PostgreSQL {row['version']}, a primary"
            found.problems.append("is not a standby; lookups would read a database that nothing fills")
            return
        behind = max(0, int(row["behind"] or 0))
        found.detail = f"PostgreSQL {row['version']}, {behind} bytes behind the primary"
        # an idle primary makes the last transaction old without the replica being late
        if behind and (row["age"] or 0) > _LAG_LIMIT_S:
            found.problems.append(f"lags {row['age']:.0f} s behind: is replay paused, or the network slow?")
    finally:
        await primary.close(timeout=_DEADLINE_S)
        await replica.close(timeout=_DEADLINE_S)


async def _redis(found: Finding, settings: Settings) -> None:
    client = Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=_DEADLINE_S, socket_connect_timeout=_DEADLINE_S
    )
    try:
        info = await client.info()
        name = "Valkey" if "valkey_version" in info else "Redis"
        found.detail = f"{name} {info.get('valkey_version', info['redis_version'])}"
        if info.get("role") != "master":
            found.problems.append("is a replica; reads and scripts must go to the primary")
        policy = info.get("maxmemory_policy", "noeviction")
        if int(info.get("maxmemory", 0)) and not str(policy).startswith("volatile-"):
            found.problems.append(f"maxmemory-policy is {policy}; set volatile-lru, or state could be evicted")
    finally:
        await client.aclose()


async def _kafka(found: Finding, settings: Settings) -> None:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings.kafka_bootstrap,
        request_timeout_ms=int(_DEADLINE_S * 1000),
        client_id="silogate-doctor",
    )
    await admin.start()
    try:
        cluster = await admin.describe_cluster()
        topic = changes_topic(settings.topic_prefix)
        (described,) = await admin.describe_topics([topic])
        partitions = len(described["partitions"])
        found.detail = f"{len(cluster['brokers'])} broker(s), {topic}: {partitions or 'no'} partitions"
        if described["error_code"]:
            found.problems.append(f"has no topic {topic} yet; `silogate work` makes it")
        elif partitions != settings.topic_partitions:
            found.problems.append(
                f"{topic} has {partitions} partitions, SILOGATE_TOPIC_PARTITIONS says {settings.topic_partitions}:"
                " changing the number moves cases between lanes"
            )
    finally:
        await admin.close()


async def _smtp(found: Finding, settings: Settings) -> None:
    try:
        server = MailServer.parse(settings.smtp_url.get_secret_value())
    except BadServer as error:
        found.problems.append(f"SILOGATE_SMTP_URL: {error}")
        return
    client = aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        username=server.username,
        password=server.password,
        use_tls=server.tls == "from_the_start",
        start_tls={"required": True, "if_offered": None}.get(server.tls, False),
        timeout=_DEADLINE_S,
    )
    async with client:
        reply = await client.noop()
        found.detail = f"answers {reply.code} at {server.host}"


async def _silo(found: Finding, settings: Settings, declaration: SiloDeclaration) -> None:
    connection = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=_DEADLINE_S)
    found.detail = "not loaded"
    try:
        if await connection.fetchval("select to_regclass($1)", f"{declaration.schema_name}.load") is None:
            found.problems.append(f"has no tables yet; `silogate load {declaration.silo}` makes and fills them")
            return
        await connection.execute("select set_config('search_path', $1, false)", declaration.schema_name)
        row = await connection.fetchrow(_LAST_LOAD)
    finally:
        await connection.close(timeout=_DEADLINE_S)
    if row is None:
        found.problems.append(f"was never loaded: its lookups cannot tell; run `silogate load {declaration.silo}`")
        return
    found.detail = f"source of {row['source_time']:%Y-%m-%d %H:%M}, {row['rejected']} rejected"
    if row["age"] > declaration.max_age_s:
        found.problems.append("is older than its max_age: its lookups cannot tell; load a newer source")


async def _recipient(found: Finding, url: str) -> None:
    connection = await asyncpg.connect(url, timeout=_DEADLINE_S)
    try:
        found.detail = await connection.fetchval("select 'PostgreSQL ' || current_setting('server_version')")
    finally:
        await connection.close(timeout=_DEADLINE_S)
