"""Tables are taken from the plan; tags are checked against it, derived from it and told in words."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from cache.definition import CircleTag, IndexTag, LookupDefinition, TableTag, compile_sql
from cache.examine.collations import Collations, collations
from cache.examine.tree import rewritten
from cache.values import VALUE_TYPES, ValueType
from gateway.dev.addresses import Database, Servers
from tests.integration.cache_world import BY_POSTCODE, BY_UPRN, CONTAINING, NEAR, SCHEMA, lookup
from tests.integration.examined_town import TOWN_TAGGER, by_code, examined, large_town

TABLE = TableTag()
BY_NUMBER = IndexTag("number", ("number",))
PLAIN = "select uprn, address from address where postcode = :postcode order by uprn"
CIRCLE = "address: {circle: place, easting: easting, northing: northing, metres: metres}"
BY_ADDRESS = "address: {index: address, from: [prefix]}"
BEGINS = 'address collate "C" >= :prefix and address collate "C" < :prefix_below'
BOX = """select uprn, address from address where easting between :easting - :metres and :easting + :metres
    and northing between :northing - :metres and :northing + :metres"""
DISTANCE = f"""{BOX} and :metres * :metres >=
    power(northing - :northing, 2) + (easting - :easting) * (easting - :easting)"""
PLACE = {name: VALUE_TYPES[name] for name in ("easting", "northing", "metres")}
NAME, PREFIX = {"name": VALUE_TYPES["name"]}, {"prefix": VALUE_TYPES["prefix"]}


@pytest.fixture(scope="module")
async def town(servers: Servers) -> AsyncIterator[Database]:
    async with large_town(servers) as database:
        yield database


@pytest.mark.parametrize("definition", [BY_POSTCODE, BY_UPRN], ids=lambda one: one.name)
async def test_a_sound_lookup_has_no_findings(town: Database, definition: LookupDefinition) -> None:
    """Tables, tags in words and the plan are told; sampled keys are answered alike both ways."""
    found = await examined(town, definition)
    assert (found.findings, found.tables, found.batched) == ((), ("address",), True)
    assert found.sampled >= 10
    column = next(iter(definition.parameters))
    assert found.tags == (f"a change to a row of address with this {column}",)


async def test_a_lookup_on_a_whole_table_says_so(town: Database) -> None:
    """What no index ties down is dropped by any change to the table."""
    found = await examined(town, CONTAINING)
    assert found.tags == ("any change to address",)
    assert "depends on the whole table address" in by_code(found)["whole_table_tag"].message


async def test_a_narrower_tag_is_proposed(town: Database) -> None:
    """A lookup that takes the table's tag and need not is told the line to write."""
    found = await examined(town, lookup("wide", tags={"address": TABLE}))
    assert "address: {index: postcode, from: [postcode]}" in by_code(found)["whole_table_tag"].message


@pytest.mark.parametrize(
    ("sql", "kinds", "line"),
    [
        (PLAIN, ("postcode",), "address: {index: postcode, from: [postcode]}"),
        ("select uprn, address from address where address like '%' || :text", ("text",), "address: table"),
        (NEAR.sql, ("easting", "northing", "metres"), CIRCLE),
        (DISTANCE, ("easting", "northing", "metres"), CIRCLE),
        (f"{BOX} and easting + northing < :metres * 1000", ("easting", "northing", "metres"), "address: table"),
        (f"select uprn, address from address where {BEGINS}", ("prefix",), BY_ADDRESS),
        ("select uprn, address from address where address = :prefix", ("prefix",), BY_ADDRESS),
        ("select uprn, address from plainly where uprn = :uprn", ("uprn",), "address: {index: uprn, from: [uprn]}"),
        (
            (
                "with found as (select * from address) select f.uprn,"
                " (select address from address a where a.uprn = f.uprn)"
                " from found f where f.postcode = :postcode"
            ),
            ("postcode",),
            "address: table",
        ),
    ],
    ids=[
        "an index",
        "a table",
        "a circle",
        "a circle without a root",
        "a box",
        "a beginning",
        "a name",
        "through a view",
        "twice in different ways",
    ],
)
async def test_tags_that_are_left_out_are_proposed(town: Database, sql: str, kinds: tuple[str, ...], line: str) -> None:
    """The tables are taken from the plan and each is given the narrowest tag that the plan shows to be right."""
    definition = lookup("untagged", parameters={kind: VALUE_TYPES[kind] for kind in kinds}, sql=sql, tags={})
    said = by_code(await examined(town, definition))["untagged_table"]
    assert (said.level, said.about) == ("error", "tags")
    assert said.message.endswith(line)


async def test_every_table_of_the_plan_needs_a_tag_and_no_other(town: Database) -> None:
    """A joined table without one is an error, a tag for a table that is not read a warning."""
    joined = (
        "select a.uprn, s.name as address from address a join street s on s.usrn = a.uprn where postcode = :postcode"
    )
    found = by_code(await examined(town, lookup("joined", sql=f"{joined} order by 1")))
    assert "reads street and has no tag for it" in found["untagged_table"].message
    assert found["untagged_table"].message.endswith("street: table")
    both = lookup("both", tags={**BY_POSTCODE.tags, "claim": TABLE})
    assert "a tag for claim, which the SQL does not read" in by_code(await examined(town, both))["unread_table"].message
    parking = lookup(
        "parking",
        parameters={"bay": VALUE_TYPES["integer"]},
        sql="select bay as uprn, '' as address from parking where bay = :bay",
        tags={"address": TABLE},
    )
    assert "silo.yaml of town does not declare" in by_code(await examined(town, parking))["unknown_table"].message


@pytest.mark.parametrize(
    "sql",
    [
        "select uprn, address from address where postcode = :postcode or address = :postcode order by uprn",
        "select uprn, address from address where upper(postcode) = :postcode order by uprn",
        (
            "select a.uprn, b.address from address a join address b on b.easting = a.easting"
            " where a.postcode = :postcode and a.uprn < 100 order by 1, b.uprn"
        ),
        (
            "select * from (select uprn, address, postcode, rank() over (order by uprn) from address) r"
            " where postcode = :postcode"
        ),
        "select * from (select * from address order by uprn limit 10) r where postcode = :postcode",
    ],
    ids=["or", "a function", "a join", "a window", "a limit"],
)
async def test_a_tag_that_promises_too_much_is_an_error(town: Database, sql: str) -> None:
    """Rows with another postcode change these answers, and the tag would not tell."""
    said = by_code(await examined(town, lookup("narrow", sql=sql)))["tag_too_narrow"]
    assert said.level == "error"
    assert said.message.endswith("address: table")


@pytest.mark.parametrize(
    "sql",
    [
        "select uprn, address from address where :postcode = postcode and uprn > 0 order by uprn",
        "select a.uprn, a.address from address a join claim c on c.nino = postcode where nino = :postcode order by 1",
        "select uprn, address from address where postcode::text = (:postcode)::varchar order by uprn",
        (
            "select * from (select uprn, address, postcode, rank() over (partition by postcode order by uprn)"
            " from address) r where postcode = :postcode"
        ),
    ],
    ids=["the other way round", "by way of another column", "with casts", "a window of its own"],
)
async def test_a_condition_that_holds_is_recognised(town: Database, sql: str) -> None:
    """However the equality is written, the planner shows it where the table is read."""
    tags = {"address": IndexTag("postcode", ("postcode",)), "claim": TABLE}
    found = by_code(await examined(town, lookup("tied", sql=sql, tags=tags)))
    assert "tag_too_narrow" not in found


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        (NAME, "strpos(address, :name) > 0"),
        (NAME, "address = :name or address <> :name"),
        (NAME, "not address = :name"),
        (NAME, "address >= :name"),
        (NAME, "address like :name || '%'"),
        (PREFIX, "address >= :prefix or address < :prefix_below"),
        (PREFIX, "address >= :prefix and lower(address) < :prefix_below"),
        (PREFIX, f"not ({BEGINS})"),
        (PREFIX, f"({BEGINS}) or uprn = 1"),
        (PLACE, "abs(easting - :easting) + abs(northing - :northing) <= 10 * :metres"),
        (PLACE, "easting between :easting - :metres and :easting + :metres and northing >= :northing"),
        (PLACE, "not (easting - :easting) ^ 2 + (northing - :northing) ^ 2 <= :metres ^ 2"),
        (PLACE, "(easting - :easting) ^ 2 + (northing - :northing) ^ 2 <= :metres ^ 2 or uprn = 1"),
        (PLACE, "(easting - :easting) ^ 2 + (northing - :northing) ^ 2 <= (2 * :metres) ^ 2"),
    ],
)
async def test_what_only_mentions_an_index_is_no_reason_for_its_tag(
    town: Database, parameters: dict[str, ValueType], where: str
) -> None:
    """A name's or a circle's tag needs a condition that no other row meets, and is proposed for nothing less."""
    names = tuple(parameters)
    rule = CircleTag("place", *names) if len(names) == 3 else IndexTag("address", names)
    sql = f"select uprn, address from address where {where}"
    said = by_code(await examined(town, lookup("narrow", parameters=parameters, sql=sql, tags={"address": rule})))
    assert said["tag_too_narrow"].level == "error"
    assert said["tag_too_narrow"].message.endswith("address: table")
    wide = by_code(await examined(town, lookup("wide", parameters=parameters, sql=sql, tags={"address": TABLE})))
    assert "depends on the whole table" in wide["whole_table_tag"].message


async def test_a_row_in_the_corner_of_a_box_is_in_no_tile_of_the_circle(town: Database) -> None:
    """Why a box is not enough: what it finds there changes without the circle's tags."""
    tags = TOWN_TAGGER.circle_tags("address", "place", 500_500, 100_500, 3_000)
    corner = {"uprn": 1, "easting": 503_100, "northing": 103_100}
    assert TOWN_TAGGER.table_tag("address") not in tags
    assert not TOWN_TAGGER.row_tags("address", corner) & set(tags)
    box = lookup("box", parameters=PLACE, sql=BOX, tags={"address": CircleTag("place", *PLACE)})
    said = by_code(await examined(town, box))["tag_too_narrow"].message
    assert "`(easting - :easting) ^ 2 + (northing - :northing) ^ 2 <= :metres ^ 2`" in said
    assert said.endswith("address: table")


@pytest.mark.parametrize(
    ("where", "by_code_points", "exact"),
    [
        (BEGINS, True, True),
        (BEGINS.replace('"C"', '"unicode"'), False, True),
        (f"{BEGINS} and postcode > 'BN' collate \"unicode\"", False, True),
        ("address = :prefix and postcode collate loosely = 'BN15 9JB'", True, False),
        ("address = :prefix and uprn > 5 and address like 'A%' collate \"unicode\"", True, True),
    ],
    ids=["code points", "a language", "a language elsewhere", "loosely", "no order"],
)
async def test_the_collations_of_a_statement_are_seen(
    town: Database, where: str, *, by_code_points: bool, exact: bool
) -> None:
    """In the order of a language, what begins otherwise stands in between; loosely, two spellings are one text."""
    sql, _ = compile_sql(lookup("any", parameters=PREFIX, sql=f"select uprn, address from address where {where}"))
    connection = await asyncpg.connect(town.url, timeout=10, server_settings={"search_path": SCHEMA})
    try:
        async with connection.transaction():
            tree = await rewritten(connection, sql)
        assert tree is not None
        assert await collations(connection, tree) == Collations(by_code_points, exact)
    finally:
        await connection.close()


async def test_a_collation_to_which_two_texts_are_one_is_not_believed(town: Database) -> None:
    """A row of another spelling answers too."""
    sql = "select uprn, address from address where postcode collate loosely = :postcode"
    assert "tag_too_narrow" in by_code(await examined(town, lookup("loose", sql=sql)))


async def test_a_cast_that_makes_two_values_one_is_not_believed(town: Database) -> None:
    """A row of another spelling answers this question too, and its change touches another tag."""
    sql = "select number from person where ward operator(public.=) (:ward)::public.citext order by number"
    definition = lookup(
        "wards",
        parameters={"ward": VALUE_TYPES["text"]},
        sql=sql,
        columns=("number",),
        tags={"person": IndexTag("ward", ("ward",))},
    )
    assert "tag_too_narrow" in by_code(await examined(town, definition))


async def test_circles_are_understood(town: Database) -> None:
    """The tiles of a circle are the tag when easting, northing and metres are all in the condition."""
    found = await examined(town, NEAR)
    assert found.tags == ("a change to a row of address within metres of this point (whole tiles of 1 km)",)
    assert "ask for a box first" in by_code(found)["no_index"].message
    assert "tag_too_narrow" not in by_code(found)
    elsewhere = lookup(
        "near",
        parameters=NEAR.parameters,
        sql="select uprn, address from address where easting > :easting and :northing > 0 and :metres > 0 limit 1",
        tags={"address": CircleTag("place", "easting", "northing", "metres")},
    )
    assert "tag_too_narrow" in by_code(await examined(town, elsewhere))
