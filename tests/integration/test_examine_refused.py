"""What is refused: other silos, functions that may answer otherwise, and what Postgres itself does not take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from cache.definition import IndexTag, LookupDefinition, TableTag
from cache.values import VALUE_TYPES
from gateway.dev.addresses import Database, Servers
from tests.integration.cache_world import BY_POSTCODE, CLAIM_OPEN, lookup
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


@pytest.mark.parametrize(
    ("sql", "code", "says"),
    [
        (
            "select a.uprn, a.address from address a join silo_other.debt d using (uprn) where a.postcode = :postcode",
            "two_silos",
            "reads two silos: silo_town, and silo_other.debt",
        ),
        (
            (
                "select uprn, address from address a where postcode = :postcode"
                " and not exists (select from silo_other.debt d where d.uprn = a.uprn)"
            ),
            "two_silos",
            "silo_other.debt",
        ),
        (
            "select uprn, relname as address from address, pg_class where postcode = :postcode",
            "system_table",
            "pg_class",
        ),
        ("select uprn, id as address from address, progress where postcode = :postcode", "bookkeeping", "progress"),
    ],
    ids=["a join", "a sub-plan", "the catalogue", "bookkeeping"],
)
async def test_what_is_not_the_silos_own_is_refused(town: Database, sql: str, code: str, says: str) -> None:
    """A lookup reads the tables of one silo, wherever in the plan they stand."""
    found = await examined(town, lookup("elsewhere", sql=sql))
    assert found.refused
    assert says in by_code(found)[code].message


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("now()::text", "`now()` differs from one day to the next"),
        ("current_date::text", "`CURRENT_DATE` differs"),
        ("localtimestamp::text", "`LOCALTIMESTAMP` differs"),
        ("'today'::date", "`'today'` differs"),
        ("(date 'tomorrow')", "`'tomorrow'` differs"),
        ("age(born)", "age(timestamp with time zone)"),
        ("random()", "`random()` is VOLATILE"),
        ("gen_random_uuid()", "`gen_random_uuid()` is VOLATILE"),
        ("clock_timestamp()", "`clock_timestamp()` differs"),
        ("current_user", "`CURRENT_USER` is the same for every caller"),
        ("current_setting('TimeZone')", "is only STABLE"),
        ("seen::date", "depends on the session's time zone"),
        ("seen::text", "depends on the session's time zone"),
        ("to_char(seen, 'DD')", "depends on the session's time zone"),
        ("date_trunc('day', seen)", "depends on the session's time zone"),
        ("extract(year from seen)", "depends on the session's time zone"),
        ("(born < seen)", "depends on the session's time zone"),
        ("status::date", "reads a text as a date"),
        ("jsonb_path_query_tz('{}', '$')", "is only STABLE"),
        ("tidied(status)", "written in plpgsql"),
        ("(select count(*) from addresses_of(status))", "written in sql"),
        ("to_tsvector(status)", "is only STABLE"),
    ],
)
async def test_functions_that_may_answer_otherwise_are_refused(town: Database, expression: str, says: str) -> None:
    """Each at its line, with what to write instead; overloads, operators, casts and keywords are told apart."""
    found = await examined(
        town,
        lookup(
            "volatile",
            parameters={"number": VALUE_TYPES["integer"]},
            sql=f"-- first\nselect number,\n {expression} as x\nfrom person where number = :number",
            columns=("number",),
            tags={"person": BY_NUMBER},
        ),
    )
    wrong = [one for one in found.findings if one.level == "error"]
    assert any(says.lower() in one.message.lower() for one in wrong), wrong
    assert {one.line for one in wrong} <= {3, None}


@pytest.mark.parametrize(
    "expression",
    [
        "to_char(born::timestamp, 'DD/MM/YYYY')",
        "born::text",
        "(seen at time zone 'Europe/London')::date",
        "concat(status, ' ', number)",
        "'no. ' || number",
        "format('%s', status)",
        "json_build_object('a', status)",
        "(select json_agg(x) from unnest(array[1, 2]) x)",
        "array_to_string(array[status], ',')",
        "(select max(g) from generate_series(1, 3) g)",
        "date_trunc('month', born::timestamp)",
        "extract(year from born)",
        "coalesce(nullif(trim(upper(status)), ''), 'none')",
        "'today'::text",
        "round(amount, 2)",
        "rank() over (partition by number)",
    ],
)
async def test_functions_that_always_answer_alike_pass(town: Database, expression: str) -> None:
    """What is IMMUTABLE, or STABLE for its form only, is no one's concern."""
    found = await examined(
        town,
        lookup(
            "steady",
            parameters={"number": VALUE_TYPES["integer"]},
            sql=f"select number, {expression} as x from person where number = :number",
            columns=("number", "x"),
            tags={"person": BY_NUMBER},
        ),
    )
    assert found.findings == ()


async def test_views_are_looked_into(town: Database) -> None:
    """A clock in a view is a clock in the lookup; a view's tables are the lookup's tables."""
    found = await examined(
        town,
        lookup(
            "viewed",
            parameters={"number": VALUE_TYPES["integer"]},
            sql="select number from seen_today where number = :number",
            columns=("number",),
            tags={"person": BY_NUMBER},
        ),
    )
    assert found.tables == ("person",)
    assert any("CURRENT_DATE" in one.message and one.line is None for one in found.findings)


async def test_row_security_is_said(town: Database) -> None:
    """What the role may see is part of no tag."""
    connection = await asyncpg.connect(town.url)
    try:
        await connection.execute(
            "alter table silo_town.street enable row level security;"
            "create policy few on silo_town.street to silogate_lookup using (usrn < 50)"
        )
    finally:
        await connection.close()
    street = lookup(
        "street",
        parameters={"usrn": VALUE_TYPES["usrn"]},
        sql="select usrn, name from street where usrn = :usrn",
        columns=("name",),
        tags={"street": IndexTag("usrn", ("usrn",))},
    )
    assert by_code(await examined(town, street))["row_security"].level == "warning"


# The rest of the declaration


@pytest.mark.parametrize(
    ("changes", "code", "line", "says"),
    [
        (
            {"columns": ("uprn", "adress")},
            "unknown_column",
            None,
            "names adress, which the SQL does not select; did you",
        ),
        ({"sql": f"{PLAIN}".replace("uprn,", "uprn, address,")}, "column_twice", None, "two columns named address"),
        (
            {"sql": "select uprn, address\nfrom address\nwhere postcod = :postcode"},
            "sql",
            3,
            'column "postcod" does not exist',
        ),
        (
            {"sql": "select uprn, address\nfrom adresses\nwhere postcode = :postcode"},
            "sql",
            2,
            '"adresses" does not exist',
        ),
        (
            {"sql": "select uprn, address from address\nwhere uprn = :postcode"},
            "sql",
            2,
            "operator does not exist: bigint = text",
        ),
        (
            {"sql": "select uprn, address from address where postcode = :postcode and 1 / 0 > 1"},
            "sql",
            None,
            "DivisionBy",
        ),
        ({"sql": "select uprn address from address\nwhere postcode = :postcode and"}, "sql", 2, "syntax error"),
    ],
    ids=["a column", "a column twice", "a name", "a table", "a type", "a constant", "syntax"],
)
async def test_what_postgres_refuses_is_said_with_its_line(
    town: Database, changes: dict[str, Any], code: str, line: int | None, says: str
) -> None:
    """Unknown columns, tables and types are named in Postgres' own words, at the line of the author's SQL."""
    found = by_code(await examined(town, lookup("wrong", **changes)))[code]
    assert (found.level, found.line) == ("error", line)
    assert says in found.message


async def test_a_missing_index_is_warned_of_with_what_mends_it(town: Database) -> None:
    """A large table that every question reads whole is named with the lines of silo.yaml; a small one is not."""
    found = by_code(
        await examined(town, people("select number from person where holder = :holder", holder="reference"))
    )
    assert "tables.person.indexes of silo.yaml:  holder: {columns: [holder], kind: value}" in found["no_index"].message
    small = lookup(
        "streets",
        parameters={"name": VALUE_TYPES["text"]},
        sql="select name from street where name = :name order by usrn",
        columns=("name",),
        tags={"street": TABLE},
    )
    assert set(by_code(await examined(town, small))) <= {"whole_table_tag", "row_security"}


async def test_an_empty_table_is_not_taken_for_a_sound_lookup(town: Database) -> None:
    """With nothing to compare, the SQL is prepared and that is said; without tables not even that."""
    said = by_code(await examined(town, CLAIM_OPEN))["not_loaded"]
    assert "the SQL was prepared but nothing could be compared; `silogate load town`" in said.message
    wrong = lookup("open", sql="select 1 from claim where ninno = :postcode", tags={"claim": TABLE})
    assert "sql" in by_code(await examined(town, wrong))
    missing = await examined(town, BY_POSTCODE, schema="silo_nowhere")
    assert "its tables are not there yet" in by_code(missing)["not_loaded"].message


async def test_rows_in_no_order_are_asked_one_by_one(town: Database) -> None:
    """Where only the order differs it is said what is missing; where rows differ it is an error. Both fall back."""
    shuffled = by_code(await examined(town, lookup("shuffled", sql=PLAIN.replace("by uprn", "by random()"))))
    assert "another order" in shuffled["order_differs"].message
    other = await examined(town, lookup("other", shape="one", sql=PLAIN.replace("by uprn", "by random()")))
    assert not other.batched
    assert by_code(other)["batch_differs"].level == "error"


async def test_no_value_is_said(town: Database) -> None:
    """Sentences name tables, columns and parameters, and nothing that a row holds."""
    sql = "select number from person where number = (:part)::int8 and code = :part and ward = :part"
    found = await examined(town, people(sql, part="text"))
    said = " ".join((*found.tags, found.plan, *(finding.message for finding in found.findings)))
    assert "zq" not in said
    assert found.findings
    assert "C00" not in said
