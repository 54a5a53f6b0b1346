"""The pieces of an examination that need no database."""

from __future__ import annotations

import pytest

from cache.examine.plan import Scan, bare, split
from cache.examine.samples import _ABSENT
from cache.examine.tree import parse, relations
from cache.values import VALUE_TYPES

# As PostgreSQL prints it: broken over lines, spaces in names escaped, bytes in square brackets.
TREE = r"""({QUERY :commandType 1 :utilityStmt <> :hasAggs true
:rtable ({RANGETBLENTRY :alias <> :eref {ALIAS :aliasname a\ b :colnames ("u\)p" "x")} :rtekind
0 :relid 16390 :relkind r} {RANGETBLENTRY :rtekind 2 :relid 0})
:quals {CONST :consttype 1082 :constvalue 4 [ 94 38 0 0 ]} :havingQual <> :groupClause
(o 25)})"""


def test_the_printed_tree_is_read() -> None:
    """Fields, lists and nested nodes are told apart; a null pointer is not there."""
    tree = parse(TREE)
    assert tree is not None
    assert (tree.kind, tree.word("hasAggs"), tree.has("havingQual"), tree.has("groupClause")) == (
        "QUERY", "true", False, True,
    )  # fmt: skip
    assert relations(tree) == {16390: "r"}
    assert {node.kind for node in tree.nodes()} == {"QUERY", "RANGETBLENTRY", "ALIAS", "CONST"}
    assert parse("") is None
    assert parse("}}))") is None


@pytest.mark.parametrize(
    ("condition", "parts"),
    [
        ("(a.x = $1)", ["a.x = $1"]),
        ("((a.x = $1) AND (a.y = ' AND (')) ", ["(a.x = $1)", "(a.y = ' AND (')"]),
        ("((a.x = $1) AND ((a.y = 1) OR (a.z = 2)))", ["(a.x = $1)", "((a.y = 1) OR (a.z = 2))"]),
        ('("a AND b".x = $1)', ['"a AND b".x = $1']),
        ("(a.x = ') AND (') AND (a.y = 2)", ["(a.x = ') AND (')", "(a.y = 2)"]),
    ],
)
def test_conditions_are_split_where_postgres_joined_them(condition: str, parts: list[str]) -> None:
    """Brackets, literals and quoted names keep what they hold."""
    assert split(condition, " AND ") == parts


def test_casts_and_brackets_do_not_hide_a_comparison() -> None:
    """What Postgres adds to be exact is taken away for a look at the form."""
    assert bare("((a.x)::character varying(8) = ($1)::text)") == "a.x = $1"
    assert bare('("a"."x"::timestamp without time zone < $2)') == "a.x < $2"


@pytest.mark.parametrize(
    ("condition", "equal"),
    [
        ("a.code = $1", True),
        ("$1 = a.code", True),
        ("(a.code)::text = ($1)::text", True),
        ("(a.code = $1) OR ($1 IS NULL)", True),
        ("(a.code = $1) OR ($2 IS NULL)", False),
        ("(a.code = $1) OR (a.code IS NULL)", False),
        ("($1 IS NULL)", False),
        ("(a.code)::citext = ($1)::citext", False),
        ("a.code = ($1)::citext", False),
        ("a.code = ($1)::character(8)", False),
        ("(a.code)::bigint = $1", False),
        ("a.code = $10", False),
        ("a.codes = $1", False),
        ("b.code = $1", False),
        ("a.code <> $1", False),
        ("upper(a.code) = $1", False),
        ("(a.code = $1) = false", False),
    ],
)
def test_an_equality_is_believed_only_where_it_is_one(condition: str, equal: bool) -> None:
    """A tag is only as good as the condition that it stands on."""
    scan = Scan("silo_town", "address", "a", tuple(split(condition, " AND ")), narrowed=True, shown="")
    assert scan.equals("code", 1, frozenset({1})) is equal


@pytest.mark.parametrize("name", sorted(_ABSENT))
def test_what_no_row_holds_is_well_formed(name: str) -> None:
    """An absent key gets as far as the SQL."""
    assert VALUE_TYPES[name].normalise(_ABSENT[name]) is not None
