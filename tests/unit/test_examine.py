"""The pieces of an examination that need no database."""

from __future__ import annotations

import pytest

from cache.definition import IndexTag
from cache.examine.collations import Collations
from cache.examine.conditions import bare, split
from cache.examine.plan import Plan, Scan
from cache.examine.samples import _ABSENT
from cache.examine.tags import check_tags_of
from cache.examine.tree import parse, relations
from cache.normalisers import LAST
from cache.values import VALUE_TYPES, Index, Tagger
from tests.integration.cache_world import lookup

LANGUAGE = Collations(by_code_points=False)
# As PostgreSQL prints it: broken over lines, spaces in names escaped, bytes in square brackets.
TREE = r"""({QUERY :commandType 1 :utilityStmt <> :hasAggs true
:rtable ({RANGETBLENTRY :alias <> :eref {ALIAS :aliasname a\ b :colnames ("u\)p" "x")} :rtekind
0 :relid 16390 :relkind r} {RANGETBLENTRY :rtekind 2 :relid 0})
:quals {CONST :consttype 1082 :constvalue 4 [ 94 38 0 0 ]} :havingQual <> :groupClause
(o 25)})"""


def scan(condition: str) -> Scan:
    return Scan("silo_town", "address", "a", tuple(split(condition, " AND ")), narrowed=True, shown="")


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
        ("((a.code = $1) AND (a.open = true)) OR ($1 IS NULL)", True),
        ("((a.code = $1) AND (a.open = true)) OR (a.open = false)", False),
        ("NOT (a.code = $1)", False),
        ("(a.code = $1) IS NOT TRUE", False),
        ("(a.code = $1) IS NULL", False),
        ("(a.code)::text = ($1)::character varying(4)", False),
        ("a.code = ($1)::jsonb", False),
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
    assert scan(condition).equals("code", 1, "text", frozenset({1})) is equal


@pytest.mark.parametrize(
    ("kind", "cast", "harmless"),
    [("text", "bigint", False), ("int8", "bigint", True), ("float8", "bigint", False), ("int8", "text", False)],
)
def test_a_cast_of_a_parameter_may_not_make_two_values_one(kind: str, cast: str, *, harmless: bool) -> None:
    """The texts 7 and 007 are two values with two tags, and one whole number."""
    assert scan(f"(a.code = ($1)::{cast})").equals("code", 1, kind, frozenset()) is harmless


@pytest.mark.parametrize(
    ("condition", "begins"),
    [
        ("(a.name >= $1) AND (a.name < ($1 || 'END'::text))", True),
        ("((a.name)::text >= $1) AND ((a.name)::text < ($1 || 'END'::text)) AND (a.open = true)", True),
        ("(($1 || 'END'::text) > a.name) AND ($1 <= a.name)", True),
        ("((a.name >= $1) AND (a.name < ($1 || 'END'::text))) OR ($1 IS NULL)", True),
        ("(a.name >= $1)", False),
        ("(a.name < ($1 || 'END'::text))", False),
        ("(a.name >= $1) AND (a.name < ($2 || 'END'::text))", False),
        ("(a.name >= $1) AND (a.name < ($1 || 'z'::text))", False),
        ("(a.name >= $1) AND (a.town < ($1 || 'END'::text))", False),
        ("(a.name >= $1) OR (a.name < ($1 || 'END'::text))", False),
        ("(NOT ((a.name >= $1) AND (a.name < ($1 || 'END'::text))))", False),
        ("(lower(a.name) >= $1) AND (lower(a.name) < ($1 || 'END'::text))", False),
        ("(a.name ~~ ($1 || '%'::text))", False),
        ("(strpos(a.name, $1) > 0)", False),
    ],
)
def test_a_beginning_is_believed_only_as_a_range(condition: str, *, begins: bool) -> None:
    """Both ends, of one column and one parameter, for every row."""
    assert scan(condition.replace("END", LAST)).begins("name", 1, frozenset({1})) is begins


@pytest.mark.parametrize(
    ("condition", "near"),
    [
        ("(sqrt((((a.x - $1) ^ '2'::double precision) + ((a.y - $2) ^ '2'::double precision))) <= $3)", True),
        ("((((a.x - $1) * (a.x - $1)) + ((a.y - $2) * (a.y - $2))) <= ($3 * $3))", True),
        ("((((a.x - $1) * (a.x - $1)) + ((a.y - $2) * (a.y - $2))) < ($3 * $3)) AND (a.x > '1'::numeric)", True),
        ("(($3 * $3) >= (((($2 - a.y)) ^ '2'::double precision) + 1))", False),
        ("((power(((a.x)::double precision - $1), '2'::numeric) + (($2 - a.y) ^ 2)) <= ($3 ^ '2'::numeric))", True),
        ("($3 >= (|/ (power((a.x - $1), 2) + power((a.y - $2), 2))))", True),
        (
            "(((power((a.x - $1), 2) + power((a.y - $2), 2)))::double precision <= ($3 ^ 2)) OR ($3 IS NULL)",
            True,
        ),
        ("((((a.x - $1) * (a.x - $1)) + ((a.y - $2) * (a.y - $2))) >= ($3 * $3))", False),
        ("((((a.x - $1) * (a.x - $1)) + ((a.y - $2) * (a.y - $2))) <= ($3 * '10'::double precision))", False),
        ("((((a.x - $1) * ($1 - a.x)) + ((a.y - $2) * (a.y - $2))) <= ($3 * $3))", False),
        ("((((a.x - $1) * (a.x - $1)) + ((a.x - $2) * (a.x - $2))) <= ($3 * $3))", False),
        ("((((a.x - $1) * (a.x - $1)) - ((a.y - $2) * (a.y - $2))) <= ($3 * $3))", False),
        ("((((a.x - $1) ^ '4'::numeric) + ((a.y - $2) ^ '2'::numeric)) <= ($3 * $3))", False),
        ("(((((a.x)::integer - $1) ^ '2'::numeric) + ((a.y - $2) ^ '2'::numeric)) <= ($3 * $3))", False),
        ("((((a.x - $1) * (a.x - $1)) + ((a.y - $2) * (a.y - $2))) <= ($3 * $3)) OR (a.open = true)", False),
        ("(NOT (sqrt((((a.x - $1) ^ '2'::numeric) + ((a.y - $2) ^ '2'::numeric))) <= $3))", False),
        ("((abs((a.x - $1)) + abs((a.y - $2))) <= ('10'::double precision * $3))", False),
        ("((abs((a.x - $1)) <= $3) AND (abs((a.y - $2)) <= $3))", False),
        ("(a.x >= ($1 - $3)) AND (a.x <= ($1 + $3)) AND (a.y >= ($2 - $3)) AND (a.y <= ($2 + $3))", False),
    ],
)
def test_a_circle_is_believed_only_as_a_distance(condition: str, *, near: bool) -> None:
    """The tiles of a circle hold no row that is further away, so nothing wider may be read."""
    assert scan(condition).is_near(("x", "y"), (1, 2, 3), frozenset({1, 2, 3})) is near


@pytest.mark.parametrize(
    ("condition", "collations", "codes"),
    [
        (f"(a.name >= $1) AND (a.name < ($1 || '{LAST}'::text))", Collations(), []),
        (f"(a.name >= $1) AND (a.name < ($1 || '{LAST}'::text))", Collations(exact=False), []),
        (f"(a.name >= $1) AND (a.name < ($1 || '{LAST}'::text))", LANGUAGE, ["tag_too_narrow"]),
        ("(a.name = $1)", LANGUAGE, []),
        ("(a.name = $1)", Collations(exact=False), ["tag_too_narrow"]),
    ],
)
def test_a_condition_is_believed_by_its_collation_only(
    condition: str, collations: Collations, codes: list[str]
) -> None:
    """The order of a language puts other beginnings in between; the message says which collation to write."""
    tagger = Tagger("town", {"address": (Index("name", ("name",), "name", ("name",)),)}, b"k" * 32, "k")
    definition = lookup(
        "beginning", parameters={"q": VALUE_TYPES["prefix"]}, tags={"address": IndexTag("name", ("q",))}
    )
    plan = Plan((scan(condition),), frozenset(), collations)
    findings = list(check_tags_of(definition, tagger, plan))
    assert [finding.code for finding in findings] == codes
    assert all('`name collate "C" >= :q and name collate "C" < :q_below`' in one.message for one in findings)


@pytest.mark.parametrize("name", sorted(_ABSENT))
def test_what_no_row_holds_is_well_formed(name: str) -> None:
    """An absent key gets as far as the SQL."""
    assert VALUE_TYPES[name].normalise(_ABSENT[name]) is not None
