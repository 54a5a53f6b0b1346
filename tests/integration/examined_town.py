"""A town large enough for a plan to matter: the silo of `cache_world` with 50,000 addresses and some awkward tables."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from cache.definition import LookupDefinition
from cache.examine.examine import Examined, Finding, examine
from cache.values import Index, Tagger
from gateway.dev.addresses import Database, Servers
from tests.integration.cache_world import INDEXES, LOOKUP_ROLE, SCHEMA, SILO, World

TOWN_TAGGER = Tagger(
    SILO,
    {
        **INDEXES,
        "address": (*INDEXES["address"], Index("address", ("address",), "name", ("name",))),
        "person": (
            Index("number", ("number",), "value", ("integer",)),
            Index("code", ("code",), "value", ("reference",)),
            Index("ward", ("ward",), "value", ("text",)),
        ),
        "street": (Index("usrn", ("usrn",), "value", ("usrn",)),),
    },
    b"k" * 32,
    "k",
)
# Postcodes of ten addresses each, and people with columns of the types that are easily compared in another one.
_ROWS = f"""
set search_path = {SCHEMA}, public;
create extension if not exists citext schema public;
create index address_by_address on address (address collate "C");
insert into address
select g, 'BN' || 10 + g / 10 % 80 || ' ' || g / 800 % 10 || chr(65 + g / 8000) || 'A', 'house ' || g || ' high street',
    500000 + g % 1000, 100000 + g / 1000
from generate_series(1, 50000) g;
create table person (number int8 primary key, code char(8), ward citext, amount numeric, born date, seen timestamptz,
    status text, holder text);
insert into person
select g, 'C' || lpad(g::text, 7, '0'), 'Ward ' || g / 100, g, '1950-01-01'::date + g % 20000, now(), 'open', 'C' || g
from generate_series(1, 50000) g;
create index on person (code);
create index on person (ward);
create table street (usrn int8 primary key, name text);
insert into street select g, 'Street ' || g from generate_series(1, 100) g;
create collation loosely (provider = libc, locale = 'C');
-- as those of ICU can be, which not every server is built with
update pg_collation set collisdeterministic = false where collname = 'loosely';
create table parking (bay int8 primary key);
create view numbered as select *, row_number() over (order by holder, number) as place from person;
create view seen_today as select * from person where seen::date = current_date;
create view plainly as select uprn, postcode, address from address;
create function {SCHEMA}.addresses_of(text) returns setof address language sql stable as
    'select * from {SCHEMA}.address where postcode = $1';
create function {SCHEMA}.tidied(text) returns text language plpgsql immutable as 'begin return upper($1); end';
create schema silo_other;
create table silo_other.debt (uprn int8 primary key, amount numeric);
grant usage on schema {SCHEMA}, silo_other to {LOOKUP_ROLE};
grant select on all tables in schema {SCHEMA}, silo_other to {LOOKUP_ROLE};
analyze
"""


@contextlib.asynccontextmanager
async def large_town(servers: Servers) -> AsyncIterator[Database]:
    """The database of the town, dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    await _administer(servers, f'create database "{name}"')
    database = Database(_address(servers.postgres_url, name), _address(servers.replica_url, name))
    world = World(database, servers.redis_url)
    try:
        await world.prepare()
        async with world.connect() as connection:
            await connection.execute(_ROWS, timeout=60)
        yield database
    finally:
        await world.stop()
        await _administer(servers, f'drop database "{name}" with (force)')


async def examined(database: Database, definition: LookupDefinition, **options: Any) -> Examined:
    """Examine as `silogate check` does: the lookups' role, read only, under the statement time-out."""
    connection = await asyncpg.connect(
        database.url,
        timeout=10,
        server_settings={
            "search_path": options.pop("schema", SCHEMA),
            "role": LOOKUP_ROLE,
            "statement_timeout": "2000",
            "default_transaction_read_only": "on",
            "jit": "off",
        },
    )
    try:
        return await examine(connection, definition, options.pop("tagger", TOWN_TAGGER), **options)
    finally:
        await connection.close()


def by_code(found: Examined) -> Mapping[str, Finding]:
    return {finding.code: finding for finding in found.findings}


async def _administer(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        await connection.execute(statement, timeout=60)
    finally:
        await connection.close()


def _address(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
