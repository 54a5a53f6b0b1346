"""How a statement compares texts: a tag stands on an order by code points, and on equal texts being the same text."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from cache.examine.tree import Node

# The builtin provider's collations, and the C library's own, sort by code points; every other one by language.
_COLLATIONS_SQL = """
select c.oid::int8 as id, c.collisdeterministic as exact,
    case c.collprovider::text
        when 'b' then true
        when 'c' then lower(c.collcollate) = any ($2::text[])
        when 'd' then d.provider = 'b' or (d.provider = 'c' and lower(d.datcollate) = any ($2::text[]))
        else false
    end as by_code_points
from pg_catalog.pg_collation c, (
    select coalesce(to_jsonb(one) ->> 'datlocprovider', 'c') as provider, one.datcollate
    from pg_catalog.pg_database one where one.datname = current_database()
) d
where c.oid = any ($1::oid[])
"""
_BY_CODE_POINTS = ["c", "posix", "c.utf-8", "c.utf8"]
_OPERATORS_SQL = "select oid::int8 as id, oprname as name from pg_catalog.pg_operator where oid = any ($1::oid[])"


@dataclass(frozen=True, slots=True)
class Collations:
    """Whether all comparisons of texts in a statement sort by code points, and take only the same text as equal."""

    by_code_points: bool = True
    exact: bool = True


async def collations(connection: asyncpg.Connection, tree: Node) -> Collations:
    """Those of the statement's `=`, `<`, `<=`, `>` and `>=`; of an empty tree nothing is known, and no harm is said."""
    used = {
        (node.number("opno"), node.number("inputcollid"))
        for node in tree.nodes()
        if node.number("opno") and node.number("inputcollid")
    }
    if not used:
        return Collations()
    rows = await connection.fetch(_COLLATIONS_SQL, sorted({collation for _, collation in used}), _BY_CODE_POINTS)
    kinds = {row["id"]: row for row in rows}
    rows = await connection.fetch(_OPERATORS_SQL, sorted({operator for operator, _ in used}))
    names = {row["id"]: row["name"] for row in rows}
    sorting = {collation for operator, collation in used if names.get(operator) in ("<", "<=", ">", ">=")}
    equating = {collation for operator, collation in used if names.get(operator) == "="}
    return Collations(
        by_code_points=all(kinds[collation]["by_code_points"] for collation in sorting),
        exact=all(kinds[collation]["exact"] for collation in equating),
    )
