"""The Postgres schema of a silo: its tables, what is kept about its loads, and who may read it."""

from __future__ import annotations

import hashlib
import json
import secrets

import asyncpg

from streams.silos.declaration import SiloDeclaration
from streams.silos.errors import SchemaDrift
from streams.silos.names import CANARY, POSTGRES_TYPES, quoted
from streams.silos.statements import TableSql
from streams.silos.values import ValueTypes
from streams.sql.migrate import LOOKUP_ROLE

_TIMEOUT_S = 60.0

# The seed row of the change log lets whoever follows it find the position that `progress` begins with.
_BOOKKEEPING = """
create table progress (
    only_one boolean primary key default true check (only_one),
    epoch text not null, seq bigint not null, id text not null, definition text not null,
    source_position jsonb not null, applied_at timestamptz not null default now()
);
create table change_log (
    seq bigint primary key, id text not null, tags text[] not null, at timestamptz not null default now()
);
create table load (
    id bigint generated always as identity primary key,
    source_time timestamptz not null, started timestamptz not null, completed timestamptz,
    added bigint not null, changed bigint not null, removed bigint not null, rejected bigint not null
);
create table reject (
    load_id bigint not null references load on delete cascade,
    file text not null, sheet text, row_number bigint not null, column_name text not null, value_shown text not null,
    reason text not null, tags text[] not null, table_name text not null
);
create index reject_by_load on reject (load_id);
"""
# Made also in schemas that an older release made.
_ADDED_SINCE = f"""
alter table progress add column if not exists server text;
create index if not exists change_log_by_time on change_log (at);
create table if not exists {CANARY} (
    id bigint primary key, beat bigint not null, at timestamptz not null default '-infinity'
);
insert into {CANARY} (id, beat) values (1, 0) on conflict do nothing;
"""  # noqa: S608 - a constant
_SEED = """
with made as (
    insert into progress (epoch, seq, id, definition, source_position) values ($1, 0, $2, '', '{}') returning seq, id
)
insert into change_log (seq, id, tags) select seq, id, '{}' from made
"""

_COLUMNS = """
select a.attname as name, format_type(a.atttypid, null) as kind, coalesce(a.attnum = any (k.conkey), false) as is_key
from pg_attribute a left join pg_constraint k on k.conrelid = a.attrelid and k.contype = 'p'
where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
"""


async def prepare(
    connection: asyncpg.Connection, declaration: SiloDeclaration, types: ValueTypes, *, role: str = LOOKUP_ROLE
) -> None:
    """Make the silo's schema what its declaration says, or find that it is already; safe to call at any time.

    A column that is new in the declaration is added, empty until the next load. One that is gone stays as it is, as
    another process may still run with the older declaration. Raises SchemaDrift when a column's type or the key is
    another one: what is stored cannot become that, so a person decides. `role` may read and nothing else.
    """
    shape = _shape(declaration, types, role)
    if await _is_prepared(connection, declaration.schema_name, shape):
        return
    async with connection.transaction():
        await connection.execute(
            "select pg_advisory_xact_lock(hashtextextended($1, 0))",
            f"silogate prepare {declaration.silo}",
            timeout=_TIMEOUT_S,
        )
        await _make(connection, declaration, types, role)
        await connection.execute(
            f"comment on schema {quoted(declaration.schema_name)} is '{shape}'", timeout=_TIMEOUT_S
        )


async def _is_prepared(connection: asyncpg.Connection, schema: str, shape: str) -> bool:
    found = await connection.fetchval(
        "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1", schema, timeout=_TIMEOUT_S
    )
    return bool(found == shape)


def _shape(declaration: SiloDeclaration, types: ValueTypes, role: str) -> str:
    tables = {
        name: {
            "key": table.key,
            "columns": {column: types.postgres(rule.type) for column, rule in table.columns.items()},
            "indexes": {index: (entry.kind, entry.columns) for index, entry in table.indexes.items()},
        }
        for name, table in declaration.tables.items()
    }
    text = json.dumps([3, role, tables], sort_keys=True)
    return f"silogate {hashlib.sha256(text.encode()).hexdigest()}"


async def _make(connection: asyncpg.Connection, declaration: SiloDeclaration, types: ValueTypes, role: str) -> None:
    if not await connection.fetchval("select true from pg_roles where rolname = $1", role, timeout=_TIMEOUT_S):
        raise SchemaDrift(f"the database has no role {role}, which lookups run as: bring its gateway schema up to date")
    schema, reader = quoted(declaration.schema_name), quoted(role)
    await connection.execute(f"create schema if not exists {schema}", timeout=_TIMEOUT_S)
    await connection.execute(f"set local search_path = {schema}", timeout=_TIMEOUT_S)
    if not await connection.fetchval("select to_regclass('progress') is not null", timeout=_TIMEOUT_S):
        await connection.execute(_BOOKKEEPING, timeout=_TIMEOUT_S)
        await connection.execute(_SEED, secrets.token_hex(16), secrets.token_hex(16), timeout=_TIMEOUT_S)
    await connection.execute(_ADDED_SINCE, timeout=_TIMEOUT_S)
    for name, table in declaration.tables.items():
        sql = TableSql(name, table, types)
        await _make_table(
            connection,
            declaration.silo,
            sql,
            {column: POSTGRES_TYPES[types.postgres(rule.type)] for column, rule in table.columns.items()},
        )
        for index, entry in table.indexes.items():
            by_beginning = entry.kind == "name"
            if entry.columns != table.key or by_beginning:
                made = sql.create_index(index, entry.columns, by_beginning=by_beginning)
                await connection.execute(made, timeout=_TIMEOUT_S)
    await connection.execute(
        f"revoke all on schema {schema} from public; revoke all on all tables in schema {schema} from public; "
        f"grant usage on schema {schema} to {reader}; grant select on all tables in schema {schema} to {reader}",
        timeout=_TIMEOUT_S,
    )


async def _make_table(connection: asyncpg.Connection, silo: str, sql: TableSql, wanted: dict[str, str]) -> None:
    found = {row["name"]: row for row in await connection.fetch(_COLUMNS, quoted(sql.name), timeout=_TIMEOUT_S)}
    if not found:
        await connection.execute(sql.create(), timeout=_TIMEOUT_S)
        return
    remedy = f"; drop the schema silo_{silo} and load the silo again"
    if {name for name, row in found.items() if row["is_key"]} != set(sql.key):
        raise SchemaDrift(f"the key of {silo}.{sql.name} is no longer {', '.join(sql.key)} in the replica{remedy}")
    for column, kind in wanted.items():
        if column not in found:
            await connection.execute(sql.add_column(column), timeout=_TIMEOUT_S)
        elif found[column]["kind"] != kind:
            raise SchemaDrift(
                f"{silo}.{sql.name}.{column} is {found[column]['kind']} in the replica and {kind} in silo.yaml{remedy}"
            )
