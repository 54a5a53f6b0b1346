"""The SQL of one declared table. Every name in it went through `quoted`, every type through `quoted_type`."""
# ruff: noqa: S608 - names cannot be bound as parameters; these are validated and quoted

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

from streams.silos.declaration import Table
from streams.silos.names import quoted, quoted_type
from streams.silos.values import ValueTypes

# No declared column can begin with an underscore, so these never collide with one.
ROW, GOOD = "_row", "_good"


class TableSql:
    """Statements that stage, compare and apply one table, to be run with search_path set to the silo's schema.

    Staging and diff are temporary tables: they vanish with the session, whatever becomes of the loader. Their names are
    new each time, so that a pooled connection never takes a statement that it prepared for another silo's columns.
    """

    def __init__(self, name: str, table: Table, types: ValueTypes) -> None:
        self.name = name
        self.columns = tuple(table.columns)
        self.key = table.key
        self._types = {column: quoted_type(types.postgres(rule.type)) for column, rule in table.columns.items()}
        self._target = quoted(name)
        unique = f"{name}_{secrets.token_hex(6)}"
        self.staged = f"_staged_{unique}"
        self._staged = quoted(self.staged)
        self._diff = quoted(f"_diff_{unique}")
        self._twice = quoted(f"_twice_{unique}")

    def create(self) -> str:
        columns = ", ".join(f"{quoted(column)} {kind}" for column, kind in self._types.items())
        return f"create table {self._target} ({columns}, primary key ({_list(self.key)}))"

    def add_column(self, column: str) -> str:
        return f"alter table {self._target} add column {quoted(column)} {self._types[column]}"

    def create_index(self, index: str, columns: Sequence[str], *, by_beginning: bool = False) -> str:
        """The statement for one declared index. One that is searched by a beginning sorts by code points."""
        if by_beginning:
            name, columns = f"{self.name}_by_{index}_c", [f'{quoted(column)} collate "C"' for column in columns]
            return f"create index if not exists {quoted(name)} on {self._target} ({', '.join(columns)})"
        return f"create index if not exists {quoted(f'{self.name}_by_{index}')} on {self._target} ({_list(columns)})"

    def stage(self) -> str:
        columns = ", ".join(f"{quoted(column)} {kind}" for column, kind in self._types.items())
        return f"create temp table {self._staged} ({quoted(ROW)} int8, {quoted(GOOD)} bool, {columns})"

    def unstage(self) -> str:
        return f"drop table if exists pg_temp.{self._staged}"

    def analyze(self) -> str:
        return f"analyze {self._staged}"

    def mark_twice(self) -> str:
        """Keys that stand in more than one row, with those rows; a refused row counts, as its key is there too."""
        return f"""
            create temp table {self._twice} on commit drop as
            select {_list(self.key)}, array_agg({quoted(ROW)} order by {quoted(ROW)}) as _rows
            from {self._staged} group by {_list(self.key)} having count(*) > 1"""

    def rows_twice(self) -> str:
        """Every staged row whose key stands in another row too; `_rows` are all of them."""
        columns = ", ".join(f"s.{quoted(column)}" for column in self.columns)
        return f"""
            select s.{quoted(ROW)} as _row, w._rows, {columns}
            from {self._staged} s join {self._twice} w using ({_list(self.key)}) order by s.{quoted(ROW)}"""

    def keep_good(self) -> tuple[str, ...]:
        match = _match("s", "w", self.key)
        return (
            f"delete from {self._staged} s using {self._twice} w where {match}",
            f"delete from {self._staged} where not {quoted(GOOD)}",
        )

    def counts(self) -> str:
        return f"select (select count(*) from {self._target}) as before, (select count(*) from {self._staged}) as after"

    def diff(self) -> str:
        """What has to happen to each key, by comparing a hash of each row's values on both sides."""
        return f"""
            create temp table {self._diff} on commit drop as
            select {_list(self.key)}, case when t._hash is null then 'added' when s._hash is null then 'removed'
                else 'changed' end as _change
            from (select {_list(self.key)}, {self._hash("s")} as _hash from {self._staged} s) s
            full join (select {_list(self.key)}, {self._hash("t")} as _hash from {self._target} t) t
                using ({_list(self.key)})
            where s._hash is distinct from t._hash"""

    def changes(self) -> str:
        return f"select _change, count(*) as count from {self._diff} group by _change"

    def before_images(self, columns: Iterable[str]) -> str:
        return self._images(self._target, columns, "'changed', 'removed'")

    def after_images(self, columns: Iterable[str]) -> str:
        return self._images(self._staged, columns, "'changed', 'added'")

    def apply(self) -> tuple[str, ...]:
        values = ", ".join(f"{quoted(column)} = s.{quoted(column)}" for column in self.columns)
        source = ", ".join(f"s.{quoted(column)}" for column in self.columns)
        changed = f"{_match('t', 'd', self.key)} and d._change ="
        delete = f"delete from {self._target} t using {self._diff} d where {changed} 'removed'"
        update = f"""
            update {self._target} t set {values} from {self._staged} s, {self._diff} d
            where {changed} 'changed' and {_match("s", "d", self.key)}"""
        insert = f"""
            insert into {self._target} ({_list(self.columns)})
            select {source} from {self._staged} s join {self._diff} d using ({_list(self.key)})
            where d._change = 'added'"""
        return delete, update, insert

    def _images(self, table: str, columns: Iterable[str], changes: str) -> str:
        wanted = ", ".join(f"i.{quoted(column)}" for column in columns) or "1"
        return (
            f"select {wanted} from {table} i join {self._diff} d using ({_list(self.key)}) where _change in ({changes})"
        )

    def _hash(self, alias: str) -> str:
        # A row's text form tells null from '', quotes what it must, and writes a float so that it reads back the same.
        values = ", ".join(f"{alias}.{quoted(column)}" for column in self.columns)
        return f"sha256(convert_to(row({values})::text, 'UTF8'))"


def _list(columns: Iterable[str]) -> str:
    return ", ".join(quoted(column) for column in columns)


def _match(left: str, right: str, columns: Iterable[str]) -> str:
    return " and ".join(f"{left}.{quoted(column)} = {right}.{quoted(column)}" for column in columns)
