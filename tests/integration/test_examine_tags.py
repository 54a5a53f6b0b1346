"""Tables are taken from the plan; tags are checked against it, derived from it and told in words."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cache.definition import CircleTag, IndexTag, LookupDefinition, TableTag
from cache.values import VALUE_TYPES
from gateway.dev.addresses import Database, Servers
from tests.integration.cache_world import BY_POSTCODE, BY_UPRN, CONTAINING, NEAR, lookup
from tests.integration.examined_town import by_code, examined, large_town

TABLE = TableTag()
BY_NUMBER = IndexTag("number", ("number",))
PLAIN = "select uprn, address from address where postcode = :postcode order by uprn"


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
        (
            (
                "select uprn, address from address where easting between :easting - :metres and :easting + :metres"
                " and northing between :northing - :metres and :northing + :metres"
            ),
            ("easting", "northing", "metres"),
            "address: {circle: place, easting: easting, northing: northing, metres: metres}",
        ),
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
    ids=["an index", "a table", "a circle", "through a view", "twice in different ways"],
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
    elsewhere = lookup(
        "near",
        parameters=NEAR.parameters,
        sql="select uprn, address from address where easting > :easting and :northing > 0 and :metres > 0 limit 1",
        tags={"address": CircleTag("place", "easting", "northing", "metres")},
    )
    assert "tag_too_narrow" in by_code(await examined(town, elsewhere))
