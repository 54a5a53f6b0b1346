"""Brings a database to the newest gateway schema, one numbered file at a time."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

LOOKUP_ROLE = "silogate_lookup"

_FOLDER = Path(__file__).parent
_NUMBERED = re.compile(r"^\d{4}_[a-z0-9_]+\.sql$")
_LOCK = 0x5110_6A7E  # one migrator per database at a time

_PREPARE = """
create schema if not exists gateway;
create table if not exists gateway.migration (
    name text primary key,
    sha256 text not null,
    applied_at timestamptz not null default now()
);
"""

# Roles belong to the whole server: two databases may be migrated at the same moment, and the second must not fail.
_ROLE = f"""
do $$ begin
    if not exists (select from pg_roles where rolname = '{LOOKUP_ROLE}') then
        create role {LOOKUP_ROLE} nologin;
    end if;
exception when duplicate_object or unique_violation then null;
end $$;
do $$ begin
    if not pg_has_role(current_user, '{LOOKUP_ROLE}', 'member') then
        grant {LOOKUP_ROLE} to current_user;
    end if;
exception when unique_violation then null;
end $$;
"""


class MigrationChanged(Exception):
    """A file that was already applied reads differently now, so nobody knows what this database holds."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """The files in the order in which they are applied."""
    names = sorted(path.name for path in _FOLDER.glob("*.sql") if _NUMBERED.match(path.name))
    return [Migration(name, (_FOLDER / name).read_text(encoding="utf-8")) for name in names]


async def migrate(connection: asyncpg.Connection, *, timeout_s: float = 60.0) -> list[str]:
    """Applies what is missing, each file in a transaction of its own, and returns the names applied.

    Any number of processes may call it at once: one works, the others wait and then find nothing to do. Raises
    MigrationChanged when an applied file was edited. Also makes the role that lookups read with.
    """
    await connection.execute("select pg_advisory_lock($1)", _LOCK, timeout=timeout_s)
    try:
        await connection.execute(_PREPARE, timeout=timeout_s)
        await connection.execute(_ROLE, timeout=timeout_s)
        return [found.name for found in migrations() if await _apply(connection, found, timeout_s)]
    finally:
        await connection.execute("select pg_advisory_unlock($1)", _LOCK, timeout=timeout_s)


async def pending(connection: asyncpg.Connection, *, timeout_s: float = 10.0) -> list[str]:
    """The names of the files this database still lacks; empty when it is up to date."""
    known = await connection.fetchval("select to_regclass('gateway.migration') is not null", timeout=timeout_s)
    rows = await connection.fetch("select name from gateway.migration", timeout=timeout_s) if known else []
    applied = {row["name"] for row in rows}
    return [found.name for found in migrations() if found.name not in applied]


async def _apply(connection: asyncpg.Connection, migration: Migration, timeout_s: float) -> bool:
    applied = await connection.fetchval(
        "select sha256 from gateway.migration where name = $1", migration.name, timeout=timeout_s
    )
    if applied == migration.sha256:
        return False
    if applied is not None:
        raise MigrationChanged(
            f"{migration.name} was applied to this database and has been edited since: "
            "start from an empty database, or put the file back and write a new one"
        )
    async with connection.transaction():
        await connection.execute(migration.sql, timeout=timeout_s)
        await connection.execute(
            "insert into gateway.migration (name, sha256) values ($1, $2)",
            migration.name,
            migration.sha256,
            timeout=timeout_s,
        )
    return True
