"""A silo small enough for a test: two tables, an applier of a few lines, and the parts that answer lookups on it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cache.coherence import Invalidator
from cache.definition import CircleTag, IndexTag, LookupDefinition, TableTag
from cache.group import Answer, AsOf, Group
from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.seal import KeyRing
from cache.silo import Silo
from cache.state import State
from cache.store import Store
from cache.values import VALUE_TYPES, Index, Tagger
from gateway.dev.addresses import Database

SILO = "town"
SCHEMA = f"silo_{SILO}"
INDEXES = {
    "address": (
        Index("uprn", ("uprn",), "value", ("uprn",)),
        Index("postcode", ("postcode",), "value", ("postcode",)),
        Index("place", ("easting", "northing"), "tile", ("easting", "northing")),
    ),
    "claim": (Index("nino", ("nino",), "value", ("nino",)),),
}
STATE_KEY = f"silogate:{{{SILO}}}:state"
KEYS = {"address": "uprn", "claim": "claim_ref"}
LOOKUP_ROLE = "silogate_lookup"
# Who a primary is, as the applier and the invalidator say it: another one after each promotion.
SERVER_SQL = """
(select system_identifier from pg_control_system())::text || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
"""
# $1 is the id of the change. As the applier does, begin an epoch in the commit that is the first on another server.
ADVANCE_SQL = f"""
update progress set seq = seq + 1, id = $1, server = ({SERVER_SQL}), applied_at = clock_timestamp(),
    epoch = case when server is distinct from ({SERVER_SQL}) then md5(random()::text) else epoch end
returning epoch, seq, id
"""

_TABLES = f"""
create schema {SCHEMA};
set search_path = {SCHEMA};
create table progress (epoch text not null, seq bigint not null, id text not null, definition text not null,
    source_position jsonb not null default '{{}}', applied_at timestamptz not null default now(), server text);
create table change_log (seq bigint primary key, id text not null, tags text[] not null,
    at timestamptz not null default now());
create table load (id bigint generated always as identity primary key, source_time timestamptz, started timestamptz,
    completed timestamptz, added int, changed int, removed int, rejected int);
create table reject (load_id bigint, file text, sheet text, row_number int, column_name text, value_shown text,
    reason text, tags text[] not null, table_name text not null);
create table address (uprn int8 primary key, postcode text, address text, easting float8, northing float8);
create index on address (postcode);
create table claim (claim_ref text primary key, nino text, status text, name text);
grant usage on schema {SCHEMA} to {LOOKUP_ROLE};
grant select on all tables in schema {SCHEMA} to {LOOKUP_ROLE};
"""
_ROLE = f"""
do $$ begin create role {LOOKUP_ROLE} nologin; exception when duplicate_object or unique_violation then null; end $$;
grant {LOOKUP_ROLE} to current_user
"""


def lookup(name: str, **changes: Any) -> LookupDefinition:
    """One of the lookups that the tests ask, with some of its fields changed."""
    found = LookupDefinition(
        name=name,
        silo=SILO,
        parameters={"postcode": VALUE_TYPES["postcode"]},
        sql="select uprn::text as uprn, address from address where postcode = :postcode order by uprn",
        shape="many",
        columns=("uprn", "address"),
        tags={"address": IndexTag("postcode", ("postcode",))},
        ttl_s=600,
        soft_ttl_s=300,
        negative_ttl_s=300,
        stale_for_s=3600,
        max_age_s=None,
        personal=False,
    )
    return replace(found, **changes)


BY_POSTCODE = lookup("addresses-by-postcode")
BY_UPRN = lookup(
    "address-by-uprn",
    parameters={"uprn": VALUE_TYPES["uprn"]},
    sql="select uprn::text as uprn, postcode, address from address where uprn = :uprn",
    shape="one",
    columns=("uprn", "postcode", "address"),
    tags={"address": IndexTag("uprn", ("uprn",))},
)
NEAR = lookup(
    "addresses-near",
    parameters={name: VALUE_TYPES[name] for name in ("easting", "northing", "metres")},
    sql="""
        select uprn::text as uprn, address from address
        where sqrt((easting - :easting) ^ 2 + (northing - :northing) ^ 2) <= :metres
        order by sqrt((easting - :easting) ^ 2 + (northing - :northing) ^ 2), uprn""",
    tags={"address": CircleTag("place", "easting", "northing", "metres")},
)
CLAIM_OPEN = lookup(
    "claim-already-open",
    parameters={"nino": VALUE_TYPES["nino"]},
    sql="select 1 from claim where nino = :nino and status = 'open'",
    shape="exists",
    columns=("exists",),
    tags={"claim": IndexTag("nino", ("nino",))},
    stale_for_s=0,
    personal=True,
)
CLAIM_DETAILS = lookup(
    "claim-details",
    parameters={"nino": VALUE_TYPES["nino"]},
    sql="select name from claim where nino = :nino",
    shape="one",
    columns=("name",),
    tags={"claim": IndexTag("nino", ("nino",))},
    personal=True,
)
CONTAINING = lookup(
    "addresses-containing",
    parameters={"part": VALUE_TYPES["text"]},
    sql="select uprn::text as uprn, address from address where strpos(address, :part) > 0 order by uprn",
    tags={"address": TableTag()},
)


class World:
    """A silo in one database, its cache in one logical database of Valkey, and one process's parts over both."""

    def __init__(
        self,
        database: Database,
        redis_url: str,
        *,
        silo_url: str | None = None,
        replica_urls: Sequence[str] = (),
        skip_s: float = 1.0,
        **silo_options: Any,
    ) -> None:
        self.database = database
        self.redis_url = redis_url
        self.ring = KeyRing({1: b"k" * 32}, 1)
        self.tagger = Tagger(SILO, INDEXES, self.ring.hmac_key, self.ring.hmac_key_id)
        self.registry = CollectorRegistry()
        self.metrics = CacheMetrics(self.registry)
        self.link = RedisLink(redis_url, self.metrics, skip_s=skip_s)
        self.redis = Redis.from_url(redis_url)
        self.store = self.make_store()
        options: dict[str, Any] = {"max_age_s": None, "rejects_tolerated": False} | silo_options
        self.silo = Silo(SILO, silo_url or database.url, replica_urls, self.tagger, self.metrics, **options)
        self.invalidator = Invalidator(SILO, database.url, self.store, self.metrics, poll_s=0.02)
        self._groups: dict[str, Group] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def make_store(self, **options: Any) -> Store:
        return Store(SILO, self.tagger.definition, self.link, self.metrics, **options)

    def group(self, definition: LookupDefinition) -> Group:
        if definition.name not in self._groups:
            self._groups[definition.name] = Group(definition, self.silo, self.store, self.ring, self.metrics)
        return self._groups[definition.name]

    async def ask(
        self, definition: LookupDefinition, *values: object, timeout_s: float = 5.0, min_as_of: AsOf | None = None
    ) -> Answer:
        """Ask as the edge does: parameters in their declared order, normalised first."""
        pairs = zip(definition.parameters.items(), values, strict=True)
        parameters = {name: kind.normalise(value) for (name, kind), value in pairs}
        return await self.group(definition).answer(parameters, timeout_s=timeout_s, min_as_of=min_as_of)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def counts(self, wanted: float, name: str, **labels: str) -> None:
        """Wait until that is counted, as it is a moment after Redis or the silo has done it."""

        async def counted() -> bool:
            return self.counted(name, **labels) == wanted

        await until(counted)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.append(task)
        return task

    async def prepare(self, *, complete: bool = True) -> None:
        """Make the tables, as `silogate load` would, with one complete load unless told otherwise."""
        async with self.connect() as connection:
            await connection.execute(_ROLE)
            await connection.execute(_TABLES)
            await connection.execute(
                f"insert into progress (epoch, seq, id, definition, server) select $1, 0, $2, $3, ({SERVER_SQL})",
                secrets.token_hex(16), secrets.token_hex(16), self.tagger.definition,
            )  # fmt: skip
            await connection.execute("insert into change_log (seq, id, tags) select seq, id, '{}' from progress")
        if complete:
            await self.load()

    @contextlib.asynccontextmanager
    async def follower(self, **options: Any) -> AsyncIterator[Invalidator]:
        """An invalidator that a test moves step by step."""
        url = options.pop("url", self.database.url)
        invalidator = Invalidator(SILO, url, options.pop("store", self.store), self.metrics, **options)
        try:
            yield invalidator
        finally:
            await invalidator.close()

    def start(self) -> None:
        for part in (self.store, self.silo, self.invalidator):
            self.run(part.run())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.close()
        await self.redis.aclose()

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.database.url, timeout=10, server_settings={"search_path": SCHEMA})
        try:
            yield connection
        finally:
            await connection.close()

    async def put(self, table: str, *rows: Mapping[str, Any]) -> AsOf:
        """Insert or change rows by their key, as one batch of the applier."""
        return await self.apply(table, {row[KEYS[table]]: row for row in rows})

    async def remove(self, table: str, key: object) -> AsOf:
        return await self.apply(table, {key: None})

    async def load(
        self, *, source_time: dt.datetime | None = None, rejects: Sequence[tuple[str, list[str]]] = ()
    ) -> None:
        """Record a complete load that changed no row, with these rejects as (table, tags)."""
        async with self.connect() as connection, connection.transaction():
            load_id = await connection.fetchval(
                "insert into load (source_time, started, completed) values ($1, now(), now()) returning id",
                source_time or dt.datetime.now(dt.UTC),
            )
            for table, tags in rejects:
                await connection.execute(
                    "insert into reject (load_id, tags, table_name) values ($1, $2, $3)", load_id, tags, table
                )
            await self._advance(connection, [])

    async def apply(self, table: str, changes: Mapping[Any, Mapping[str, Any] | None]) -> AsOf:
        """The applier: rows, change log and progress in one transaction; None removes a row."""
        async with self.connect() as connection:
            return await self.apply_on(connection, table, changes)

    async def apply_on(
        self, connection: asyncpg.Connection, table: str, changes: Mapping[Any, Mapping[str, Any] | None]
    ) -> AsOf:
        async with connection.transaction():
            tags: set[str] = set()
            for key, row in changes.items():
                before = await connection.fetchrow(f"select * from {table} where {KEYS[table]} = $1 for update", key)
                tags |= self.tagger.row_tags(table, before) if before is not None else set()
                await connection.execute(f"delete from {table} where {KEYS[table]} = $1", key)
                if row is not None:
                    await connection.execute(
                        f"insert into {table} select * from json_populate_record(null::{table}, $1)", json.dumps(row)
                    )
                    tags |= self.tagger.row_tags(table, row)
            return await self._advance(connection, sorted(tags))

    async def _advance(self, connection: asyncpg.Connection, tags: list[str]) -> AsOf:
        row = await connection.fetchrow(ADVANCE_SQL, secrets.token_hex(16))
        await connection.execute(
            "insert into change_log (seq, id, tags) values ($1, $2, $3)", row["seq"], row["id"], tags
        )
        return AsOf(SILO, row["epoch"], row["seq"])

    async def state(self) -> State | None:
        return State.parse(as_bytes(await self.redis.get(STATE_KEY)))

    async def tip(self) -> tuple[str, int]:
        async with self.connect() as connection:
            row = await connection.fetchrow("select epoch, seq from progress")
            return row["epoch"], row["seq"]

    async def settled(self) -> State:
        """Wait until Redis knows all that the primary does."""
        found: list[State] = []

        async def caught_up() -> bool:
            state = await self.state()
            found[:] = [state] if state is not None and (state.epoch, state.seq) == await self.tip() else []
            return bool(found)

        await until(caught_up)
        return found[0]

    async def tags(self) -> dict[bytes, float]:
        """What Redis holds as touched, with the seq of the last touch, and the mark of the epoch."""
        found: list[Any] = await self.redis.zrange(f"silogate:{{{SILO}}}:tags", 0, -1, withscores=True)
        return dict(found)

    async def entries(self) -> dict[bytes, bytes]:
        """What is stored, by key."""
        found = {}
        async for key in self.redis.scan_iter(match="silogate:*:lk:*", count=1000):
            value = as_bytes(await self.redis.get(key))
            if value is not None:
                found[bytes(key)] = value
        return found

    async def stored(self, definition: LookupDefinition, *values: object) -> Answer:
        """Ask until the answer comes out of Redis."""
        answers: list[Answer] = []

        async def hit() -> bool:
            answers[:] = [await self.ask(definition, *values)]
            return answers[0].source == "hit"

        await until(hit)
        return answers[0]


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = 20.0) -> None:
    """Wait for the condition, looking often; fails when it takes longer than anything here should."""
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.01)


def rows(answer: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(answer.results)
    return found


def as_bytes(value: bytes | str | None) -> bytes | None:
    """The client is annotated for both kinds of reply; this one decodes nothing."""
    assert not isinstance(value, str)
    return value


def address(
    uprn: int, postcode: str | None, text: str, easting: float = 518000.0, northing: float = 104000.0
) -> dict[str, Any]:
    return {"uprn": uprn, "postcode": postcode, "address": text, "easting": easting, "northing": northing}


def claim(ref: str, nino: str, status: str = "open", name: str = "A Resident") -> dict[str, Any]:
    return {"claim_ref": ref, "nino": nino, "status": status, "name": name}
