"""What an examination says of a lookup: every trap that was measured, on tables large enough for it to snap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache.definition import IndexTag, LookupDefinition, TableTag
from cache.values import VALUE_TYPES
from gateway.dev.addresses import Database, Servers
from tests.integration.cache_world import lookup
from tests.integration.examined_town import by_code, examined, large_town

TABLE = TableTag()
BY_NUMBER = IndexTag("number", ("number",))
PLAIN = "select uprn, address from address where postcode = :postcode order by uprn"


@pytest.fixture(scope="module")
async def town(servers: Servers) -> AsyncIterator[Database]:
    async with large_town(servers) as database:
        yield database


def people(sql: str, **kinds: str) -> LookupDefinition:
    """A lookup of people by these parameters; its answers hang on the whole table."""
    return lookup(
        "people",
        parameters={name: VALUE_TYPES[kind] for name, kind in kinds.items()},
        sql=sql,
        columns=("number",),
        tags={"person": TABLE},
    )


def beginning(sql: str, kind: str, **changes: Any) -> LookupDefinition:
    return lookup("addresses-that-begin", parameters={"part": VALUE_TYPES[kind]}, sql=sql, **changes)


LIKE = beginning(
    "select uprn, address from address where address collate \"C\" like :part || '%' order by uprn limit 20",
    "text",
    tags={"address": TABLE},
)
RANGE = beginning(
    'select uprn, address from address where address collate "C" >= :part and address collate "C" < :part_below'
    ' order by address collate "C", uprn limit 20',
    "prefix",
    tags={"address": IndexTag("address", ("part",))},
)


async def test_like_in_a_batch_reads_the_whole_table_and_the_range_does_not(town: Database) -> None:
    """`LIKE :p || '%'` uses its index alone and not in a batch: it falls back, and says which range to write."""
    found = await examined(town, LIKE)
    said = by_code(found)["index_lost_in_batch"]
    assert not found.batched
    assert "a batch reads all of address for each question" in said.message
    assert 'address collate "C" >= :part and address collate "C" < :part_below' in said.message
    assert "sent one by one" in said.message
    mended = await examined(town, RANGE)
    assert mended.batched
    assert mended.findings == ()
    assert mended.tags == ("a change to a row of address whose address begins with the same 2 letters",)


@pytest.mark.parametrize(
    ("definition", "says", "mended"),
    [
        pytest.param(
            people("select number from person where code = :code", code="reference"),
            "person.code (character(8)) as text",
            people("select number from person where code = (:code)::character(8)", code="reference"),
            id="char(8) = text",
        ),
        pytest.param(
            people("select number from person where number = (:number)::numeric", number="integer"),
            "person.number (bigint) as numeric",
            people("select number from person where number = (:number)::bigint", number="integer"),
            id="bigint = numeric",
        ),
        pytest.param(
            people("select number from person where number = :number", number="number"),
            "person.number (bigint) as double precision",
            people("select number from person where number = :number", number="integer"),
            id="bigint = float8",
        ),
    ],
)
async def test_a_column_compared_in_another_type_loses_its_index(
    town: Database, definition: LookupDefinition, says: str, mended: LookupDefinition
) -> None:
    """The cast to write is said, and with it written the index is used."""
    said = by_code(await examined(town, definition))["cast"]
    assert said.level == "warning"
    assert says in said.message
    assert "compare in the column's own type" in said.message
    after = await examined(town, mended)
    assert "cast" not in by_code(after)
    assert after.plan.startswith("person by ")


async def test_citext_compared_as_text_silently_finds_nothing(town: Database) -> None:
    """A `citext` column compared with text finds one spelling only: an error, with the cast to write."""
    wrong = people("select number from person where ward = :ward order by number", ward="text")
    said = by_code(await examined(town, wrong))["citext"]
    assert (said.level, "ward operator(public.=) (:ward)::public.citext" in said.message) == ("error", True)
    right = "select number from person where ward operator(public.=) (:ward)::public.citext order by number"
    found = await examined(town, people(right, ward="text"))
    assert not found.refused
    assert found.batched


async def test_a_window_view_reads_everything_first(town: Database) -> None:
    """A window that is not cut by the key is computed over the whole table for each question."""
    said = by_code(
        await examined(town, people("select number, place from numbered where holder = :holder", holder="reference"))
    )["window"]
    assert said.level == "warning"
    assert "computes a window over all of person" in said.message


async def test_one_bad_cast_is_foreseen(town: Database) -> None:
    """A well-formed value that the SQL cannot cast fails its whole batch; the other keys are compared all the same."""
    found = await examined(
        town,
        beginning("select uprn, address from address where uprn = (:part)::int8", "text", tags={"address": TABLE}),
    )
    assert "SQLSTATE 22P02" in by_code(found)["bad_cast"].message
    assert found.sampled > 5


AGGREGATE = "select count(*) as uprn, min(address) as address from address where postcode = :postcode"


async def test_an_aggregate_answers_for_a_key_that_is_not_there(town: Database) -> None:
    """Without GROUP BY or HAVING it can never say not_found: refused. Hidden in a subquery, an absent key shows it."""
    found = await examined(town, lookup("counted", sql=AGGREGATE))
    assert found.refused
    assert "`having count(*) > 0`" in by_code(found)["aggregate"].message
    hidden = by_code(await examined(town, lookup("counted", sql=f"select * from ({AGGREGATE}) as inner_one")))
    assert "aggregate" not in hidden
    assert hidden["absent_found"].level == "warning"
    for mended in (f"{AGGREGATE} having count(*) > 0", f"{AGGREGATE} group by postcode"):
        assert (await examined(town, lookup("counted", sql=mended))).findings == ()


async def test_an_exists_over_an_aggregate_is_always_true(town: Database) -> None:
    """The shape `exists` asks whether there is a row, and an aggregate always gives one."""
    counted = lookup("counted", shape="exists", sql="select count(*) from address where postcode = :postcode")
    assert "aggregate" in by_code(await examined(town, counted))


async def test_a_trailing_comment_changes_nothing(town: Database) -> None:
    """A `--` at the end does not swallow what the batch puts around the SQL."""
    for end in (" -- the end", "; -- the end", "--", "\n/* the end */"):
        found = await examined(town, lookup("commented", sql=PLAIN + end))
        assert (found.findings, found.batched, found.sampled > 5) == ((), True, True), end


async def test_an_optional_parameter_is_tried_as_null(town: Database) -> None:
    """`or :p is null` is folded away alone but not in a batch: null keys are compared, the fallback is said."""
    sql = "select uprn, address from address where postcode = :postcode or :postcode is null order by uprn limit 3"
    found = await examined(town, lookup("any", sql=sql), optional=frozenset({"postcode"}))
    assert not found.batched
    assert "`or :parameter is null`" in by_code(found)["index_lost_in_batch"].message
    assert found.tags[0].endswith("any change to address when postcode is left out")
