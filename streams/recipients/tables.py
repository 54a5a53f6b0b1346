"""The recipient's table: what its catalogue says, and the statements that write to it and read from it.

Every identifier of a declaration becomes SQL here and nowhere else, quoted as it is written.
"""

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass
from typing import Self

import asyncpg

from streams.consumer.fence import RECIPIENT
from streams.mapping.columns import ARRAY_TYPES, Column
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration

_COLUMNS = """
select a.attname as name, coalesce(b.typname, t.typname) as type,
       not (a.attnotnull or t.typnotnull) as nullable,
       a.atthasdef or a.attidentity <> '' or t.typdefault is not null as has_default,
       a.attgenerated <> '' or a.attidentity = 'a' as generated,
       case when coalesce(b.typname, t.typname) in ('varchar', 'bpchar')
            then nullif(greatest(a.atttypmod, t.typtypmod), -1) - 4 end as max_chars,
       (select array_agg(e.enumlabel::text order by e.enumsortorder)
        from pg_catalog.pg_enum e where e.enumtypid = coalesce(b.oid, t.oid)) as labels,
       case when coalesce(b.typtype, t.typtype) = 'e' or coalesce(b.typname, t.typname) = 'uuid'
            then format('%I.%I', n.nspname, t.typname) end as cast_to
from pg_catalog.pg_attribute a
join pg_catalog.pg_type t on t.oid = a.atttypid
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
left join pg_catalog.pg_type b on t.typtype = 'd' and b.oid = t.typbasetype
where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

# What `on conflict` can lean on: unique, whole, at once, and on this column alone
_UNIQUE = """
select exists (
    select from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = to_regclass($1) and a.attname = $2
      and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indnkeyatts = 1)
"""


# A time of change beyond this is a slip of somebody's hand or clock. To follow it would leave unread what really
# changes until then, and some such times ('infinity', the year 20260) cannot even be received.
_NEWEST = "clock_timestamp() + interval '5 minutes'"
# Counting is for people: beyond this it does not matter how many there are
_MOST_AHEAD = 1000


def quoted(name: str) -> str:
    """An identifier for SQL, exactly as its owner wrote it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_table(name: str) -> str:
    """`schema.table` or `table`, for SQL."""
    return ".".join(quoted(part) for part in name.split(".", 1))


@dataclass(frozen=True, slots=True)
class RemoteTable:
    """The recipient's table as it is there. `casts`: columns that a text reaches only by naming their type."""

    columns: Dictionary[str, Column]
    casts: Dictionary[str, str]
    key_is_unique: bool = True
    has_fence: bool = True


async def read_table(connection: asyncpg.Connection, declaration: RecipientDeclaration) -> RemoteTable:
    """What the catalogue says about the declared table; no columns when there is no such table."""
    table = quoted_table(declaration.table)
    rows = await connection.fetch(_COLUMNS, table)
    columns = {
        row["name"]: Column(
            name=row["name"],
            type=row["type"],
            nullable=row["nullable"],
            has_default=row["has_default"],
            max_chars=row["max_chars"],
            generated=row["generated"],
            labels=None if row["labels"] is None else tuple(row["labels"]),
        )
        for row in rows
    }
    casts = {row["name"]: row["cast_to"] for row in rows if row["cast_to"] is not None}
    unique = await connection.fetchval(_UNIQUE, table, declaration.columns.key)
    fenced = await connection.fetchval("select to_regclass($1) is not null", RECIPIENT)
    return RemoteTable(columns, casts, key_is_unique=unique, has_fence=fenced)


@dataclass(frozen=True, slots=True)
class Statements:
    """The SQL of one recipient. `columns`: the mapped columns in the order of the parameters of `push` after two."""

    push: str
    echo: str
    held: str
    compare: str
    page: str
    first_page: str
    ahead: str
    columns: tuple[str, ...]

    @classmethod
    def of(cls, mapping: Mapping, table: RemoteTable) -> Self:
        """The statements for a mapping that was checked against this table."""
        columns = tuple(mapping.kinds)
        declaration = mapping.declaration
        return cls(
            push=_push(declaration, mapping, table, columns),
            echo=_echo(declaration),
            held=_held(declaration, table),
            compare=_compare(declaration, mapping, table, columns),
            page=_page(declaration, table, first=False),
            first_page=_page(declaration, table, first=True),
            ahead=_ahead(declaration),
            columns=columns,
        )


def _push(declaration: RecipientDeclaration, mapping: Mapping, table: RemoteTable, columns: tuple[str, ...]) -> str:
    """Writes rows newer than those there, and answers for every key what is there now: id and version.

    Rows go in the order of their keys, so two workers that meet wait for each other instead of deadlocking.
    """
    name, used = quoted_table(declaration.table), declaration.columns
    key, version, own = quoted(used.key), quoted(used.version), quoted(used.id)
    all_columns = (used.key, used.version, *columns)
    arrays = ["text[]", "int8[]", *(ARRAY_TYPES[mapping.kinds[column]] for column in columns)]
    updated = [used.version, *(column for column in columns if column not in mapping.remote_columns)]
    values = [f"c{n}::{table.casts[c]}" if c in table.casts else f"c{n}" for n, c in enumerate(all_columns)]
    parameters = ", ".join(f"${n}::{array}" for n, array in enumerate(arrays, 1))
    aliases = ", ".join(f"c{n}" for n in range(len(all_columns)))
    return f"""
with pushed as (
    insert into {name} as held ({", ".join(quoted(column) for column in all_columns)})
    select {", ".join(values)} from unnest({parameters}) as pushing({aliases}) order by c0
    on conflict ({key}) do update set {", ".join(f"{quoted(c)} = excluded.{quoted(c)}" for c in updated)}
    where coalesce(held.{version}, 0) < excluded.{version}
    returning held.{key}::text as key, held.{own}::text as id, held.{version}::int8 as version
)
select key, id, version, true as written from pushed
union all
select there.key, there.id, there.version, false from ({_held(declaration, table)}) as there
where not exists (select from pushed where pushed.key = there.key)
"""  # noqa: S608 - every identifier was quoted above


def _held(declaration: RecipientDeclaration, table: RemoteTable) -> str:
    """What is there now for each of the given references."""
    name, used = quoted_table(declaration.table), declaration.columns
    key, version, own = quoted(used.key), quoted(used.version), quoted(used.id)
    # char(n) compares with text only after losing its index
    cast = "::bpchar[]" if table.columns[used.key].type == "bpchar" else ""
    return f"""
select held.{key}::text as key, held.{own}::text as id, held.{version}::int8 as version from {name} as held
where held.{key} = any($1::text[]{cast})
"""  # noqa: S608 - every identifier was quoted above


def _compare(declaration: RecipientDeclaration, mapping: Mapping, table: RemoteTable, columns: tuple[str, ...]) -> str:
    """For rows as `push` takes them: what is there now, column by column as text, and what would be; writes nothing."""
    name, used = quoted_table(declaration.table), declaration.columns
    key, version = quoted(used.key), quoted(used.version)
    arrays = ["text[]", "int8[]", *(ARRAY_TYPES[mapping.kinds[column]] for column in columns)]
    parameters = ", ".join(f"${n}::{array}" for n, array in enumerate(arrays, 1))
    aliases = ", ".join(f"c{n}" for n in range(len(arrays)))
    both = ", ".join(
        f"held.{quoted(column)}::text as there{n}, c{n}::{_type(table, column)}::text as would{n}"
        for n, column in enumerate(columns, 2)
    )
    return f"""
select c0 as key, held.{version}::int8 as version, {both}
from unnest({parameters}) with ordinality as pushing({aliases}, n)
left join {name} as held on held.{key} = c0 order by n
"""  # noqa: S608 - every identifier was quoted above


def _type(table: RemoteTable, column: str) -> str:
    return table.casts.get(column) or quoted(table.columns[column].type)


def _echo(declaration: RecipientDeclaration) -> str:
    """Records only the version of what the recipient itself caused."""
    name, used = quoted_table(declaration.table), declaration.columns
    key, version = quoted(used.key), quoted(used.version)
    return f"""
with echoed as (select unnest($1::text[]) as key, unnest($2::int8[]) as version order by 1)
update {name} as held set {version} = echoed.version from echoed
where held.{key} = echoed.key and coalesce(held.{version}, 0) < echoed.version
"""  # noqa: S608 - every identifier was quoted above


def _page(declaration: RecipientDeclaration, table: RemoteTable, *, first: bool) -> str:
    """Rows of ours that changed, oldest first: from a moment on, or behind the last row of the page before."""
    used, status = declaration.columns, declaration.status
    if used.modified is None or status is None:
        return ""
    modified, own, key = quoted(used.modified), quoted(used.id), quoted(used.key)
    own_type = table.columns[used.id].type
    behind = f"{modified} >= $1" if first else f"({modified}, {own}) > ($1, $3::text::{quoted(own_type)})"
    return f"""
select {own}::text as id, {key}::text as key, {quoted(status.column)}::text as code, {modified} as modified,
       extract(epoch from clock_timestamp() - {modified})::float8 as age_s
from {quoted_table(declaration.table)}
where {behind} and {modified} <= {_NEWEST} and {key} is not null
order by {modified}, {own} limit $2
"""  # noqa: S608 - every identifier was quoted above


def _ahead(declaration: RecipientDeclaration) -> str:
    """How many rows of ours no page brings because their time of change lies in the recipient's future."""
    used = declaration.columns
    if used.modified is None:
        return ""
    modified, key = quoted(used.modified), quoted(used.key)
    return f"""
select count(*) from (
    select from {quoted_table(declaration.table)} where {modified} > {_NEWEST} and {key} is not null limit {_MOST_AHEAD}
) as unread
"""  # noqa: S608 - every identifier was quoted above
