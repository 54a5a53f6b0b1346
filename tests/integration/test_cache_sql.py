"""A lookup's SQL means the same alone and in a batch, however it is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from cache.definition import LookupDefinition, TableTag, compile_many, compile_sql
from cache.gathered import spread
from cache.values import VALUE_TYPES
from gateway.dev.addresses import Database
from tests.integration.cache_world import World, address, lookup

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"

PLAIN = "select uprn::text as uprn, address from address where postcode = :postcode"
TRAPS = {
    "a cast after a parameter": f"{PLAIN} and :postcode::text = postcode",
    "a cast before a parameter": f"{PLAIN} and uprn::text <> :postcode",
    "a literal with a colon": f"{PLAIN} and ':postcode' <> postcode and address <> 'note: :uprn'",
    "a literal with a quote": f"{PLAIN} and address <> 'O''Leary: :postcode'",
    "an escape string": rf"{PLAIN} and address <> E'it\'s :postcode'",
    "a dollar-quoted literal": f"{PLAIN} and address <> $x$ ';:postcode -- $x$",
    "a quoted identifier": 'select uprn::text as uprn, address as "address" from address where postcode = :postcode',
    "a line comment": f"-- what :nobody asked; for\n{PLAIN} -- it's :here\nand true",
    "a trailing comment": f"{PLAIN} -- the end",
    "a trailing comment after the semicolon": f"{PLAIN};  -- the end ;",
    "a nested block comment": f"/* outer /* :inner; */ still ' a comment */ {PLAIN} /* ' */",
    "a comment without a space": f"{PLAIN}--",
    "a parameter used twice": f"{PLAIN} and :postcode = postcode",
    "a parameter in an aggregate's filter": "select min(uprn)::text as uprn, max(address) as address from address "
    "where postcode = :postcode having count(*) > 0",
    "a common table expression": f"with found as ({PLAIN}) select * from found",
    "an alias like the batch's own": "select k.uprn::text as uprn, k.address from address k, progress p "
    "where k.postcode = :postcode and p.seq >= 0",
    "a column named like a parameter": "select uprn::text as uprn, postcode as address from address "
    "where postcode = :postcode",
    "a set operation": f"({PLAIN})".replace("(select", "select", 1).removesuffix(")") + " union all " + PLAIN,
    "an order and a limit": f"{PLAIN} order by uprn desc limit 1 offset 0",
    "an array slice": f"{PLAIN} and (array[1, 2, 3])[1:2] = array[1, 2]",
    "a window": "select uprn::text as uprn, first_value(address) over (order by uprn) as address from address "
    "where postcode = :postcode",
}


@pytest.fixture(scope="module")
def definitions() -> dict[str, LookupDefinition]:
    return {name: lookup("trap", sql=sql) for name, sql in TRAPS.items()}


@pytest.fixture
async def town(database: Database, redis_url: str) -> AsyncIterator[asyncpg.Connection]:
    world = World(database, redis_url)
    await world.prepare()
    await world.put(
        "address",
        address(1, CRABTREE, "One"),
        address(2, CRABTREE, "O'Leary: :postcode"),
        address(3, ELM, "it's :postcode"),
        address(4, None, "Nowhere"),
    )
    async with world.connect() as connection:
        yield connection
    await world.stop()


async def test_every_way_of_writing_it_means_the_same_alone_and_in_a_batch(
    town: asyncpg.Connection, definitions: dict[str, LookupDefinition]
) -> None:
    """Casts, literals, comments and names survive both forms; each key gets what it would get alone."""
    keys = [CRABTREE, "BN11 1AA", ELM, CRABTREE]
    for name, definition in definitions.items():
        plain, batch = compile_sql(definition)
        alone = [[dict(row) for row in await town.fetch(plain, key)] for key in keys]
        together = spread(await town.fetchrow(batch, keys))
        assert [json.loads(body) for body, _ in together] == alone, name
        assert [n for _, n in together] == [len(found) for found in alone], name
        assert len(alone[0]) > 0, name
        assert alone[1] == [], name


async def test_a_batch_says_where_the_silo_stood(town: asyncpg.Connection) -> None:
    """The position comes out of the same statement, so of the same snapshot, also for a key that is absent."""
    _, batch = compile_sql(lookup("addresses"))
    row = await town.fetchrow(batch, ["BN11 1AA"])
    position = await town.fetchrow("select epoch, seq, id, definition from progress")
    assert [row[name] for name in ("epoch", "seq", "id", "definition")] == list(position)
    assert spread(row) == [(b"[]", 0)]


async def test_columns_are_an_allow_list_in_their_declared_order(town: asyncpg.Connection) -> None:
    """A column that is selected and not declared does not get out."""
    narrow = lookup(
        "narrow", sql="select * from address where postcode = :postcode order by uprn", columns=("address",)
    )
    _, batch = compile_sql(narrow)
    row = await town.fetchrow(batch, [ELM])
    [(body, _)] = spread(row)
    assert json.loads(body) == [{"address": "it's :postcode"}]


@pytest.mark.parametrize(("shape", "found", "absent"), [("one", 1, 0), ("many", 2, 0)])
async def test_shapes(town: asyncpg.Connection, shape: Any, found: int, absent: int) -> None:
    """`one` answers at most one row, `many` all of them."""
    _, batch = compile_sql(lookup("shaped", shape=shape))
    bodies = [json.loads(body) for body, _ in spread(await town.fetchrow(batch, [CRABTREE, "BN11 1AA"]))]
    assert [len(body) for body in bodies] == [found, absent]


async def test_exists_does_not_care_what_is_selected(town: asyncpg.Connection) -> None:
    """The shape `exists` answers by whether there is a row, whatever its columns are called."""
    for selected in ("1", "1 as exists", "*", "null"):
        definition = lookup("there", shape="exists", sql=f"select {selected} from address where postcode = :postcode")
        _, batch = compile_sql(definition)
        bodies = [json.loads(body) for body, _ in spread(await town.fetchrow(batch, [CRABTREE, "BN11 1AA"]))]
        assert bodies == [[{"exists": True}], []]


async def test_parameters_of_every_type_arrive_as_what_they_are(town: asyncpg.Connection) -> None:
    """Each value type fits its Postgres type, in an array and alone."""
    examples = {
        "postcode": "bn15 9jb", "uprn": "000060001449", "usrn": "123", "easting": 518072, "northing": "103649.5",
        "metres": 10, "text": "it's", "name": "Émile  Zola", "nino": "qq123456c", "date": "31/1/1980",
        "integer": -1, "number": "1e3", "boolean": "yes", "reference": "rap-7kq2-93xd",
        "latitude": "50.83", "longitude": -0.32, "prefix": " Cra", "vehicle_mark": "ab12 cde",
    }  # fmt: skip
    assert examples.keys() == VALUE_TYPES.keys()
    for name, example in examples.items():
        kind = VALUE_TYPES[name]
        definition = lookup(
            "typed", parameters={"value": kind}, sql="select :value as value", columns=(), tags={"address": TableTag()}
        )
        plain, batch = compile_sql(definition)
        value = kind.normalise(example)
        assert await town.fetchval(plain, value) == value
        [(body, _)] = spread(await town.fetchrow(batch, [value]))
        assert len(json.loads(body)) == 1
        assert kind.normalise(value) == value
    [many] = await town.fetch(compile_many(lookup("addresses")), [ELM])
    assert json.loads(many["body"]) == [{"uprn": "3", "address": "it's :postcode"}]
