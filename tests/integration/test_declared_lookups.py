"""The lookups that we ship, asked of a real database: nearest first, by a beginning, one by one and many at once."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cache.definition import LookupDefinition, compile_one, compile_sql
from cache.gathered import spread
from cache.normalisers import LAST, name
from gateway.dev.addresses import Database
from gateway.integrations import read_folders, tagger_of, value_types
from streams.silos.schema import prepare

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_FOLDERS = read_folders(_DEPLOY / "integrations", _DEPLOY / "silos")
_LOOKUPS = {lookup.name: lookup.definition for one in _FOLDERS.integrations for lookup in one.lookups}
NEAR, STREETS = _LOOKUPS["assets-near"], _LOOKUPS["streets-by-prefix"]
# The corner of four tiles.
E, N = 518_000.0, 104_000.0


@pytest.fixture
async def connection(gateway_database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A database with the shipped silos' empty tables."""
    connection = await asyncpg.connect(gateway_database.url, timeout=10)
    for declaration in _FOLDERS.silos.values():
        await prepare(connection, declaration, value_types())
    try:
        yield connection
    finally:
        await connection.close()


async def asked(
    connection: asyncpg.Connection, lookup: LookupDefinition, *questions: tuple[Any, ...]
) -> list[list[dict[str, Any]]]:
    """Each question's rows; what is asked alone and what is asked in one batch must be the same."""
    await connection.execute(f"set search_path = silo_{lookup.silo}")
    normalised = [
        [kind.normalise(value) for kind, value in zip(lookup.parameters.values(), question, strict=True)]
        for question in questions
    ]
    alone = [json.loads((await connection.fetchrow(compile_one(lookup), *one))["body"]) for one in normalised]
    _, batch = compile_sql(lookup)
    row = await connection.fetchrow(batch, *[list(column) for column in zip(*normalised, strict=True)])
    together = [json.loads(body) for body, _ in spread(row)]
    assert together == alone
    return alone


async def _toilets(connection: asyncpg.Connection, *points: tuple[int, float, float]) -> None:
    await connection.executemany(
        "insert into silo_assets.toilet (uprn, name, easting, northing) values ($1, 'Beach Green', $2, $3)", points
    )


async def test_the_nearest_come_first_and_ties_have_one_order(connection: asyncpg.Connection) -> None:
    """By the exact distance, though the same metres are shown; then by UPRN, whatever its number of digits."""
    await _toilets(
        connection,
        (12, E + 10.4, N), (3, E - 9.6, N), (2, E, N + 10.4), (10, E, N - 10.4), (7, E, N), (8, E + 500, N),
    )  # fmt: skip
    (found,) = await asked(connection, NEAR, (E, N, 11))
    assert [(row["uprn"], row["metres"]) for row in found] == [("7", 0), ("3", 10), ("2", 10), ("10", 10), ("12", 10)]


async def test_a_radius_of_nothing_finds_what_is_there_and_a_border_belongs_inside(
    connection: asyncpg.Connection,
) -> None:
    """Exactly at the distance is near; a hand's breadth further is not; and 0 is a distance."""
    await _toilets(connection, (1, E, N), (2, E + 100, N), (3, E, N - 100.1), (4, E + 60, N + 80))
    nothing, hundred = await asked(connection, NEAR, (E, N, 0), (E, N, 100))
    assert [row["uprn"] for row in nothing] == ["1"]
    assert [row["uprn"] for row in hundred] == ["1", "2", "4"]


async def test_whatever_an_answer_shows_shares_a_tag_with_it(connection: asyncpg.Connection) -> None:
    """At the edges and corners of tiles above all: a change of any row that is shown touches the answer."""
    steps = (-1000.0, -999.5, -0.5, 0.0, 0.5, 999.5, 1000.0)
    points = [(n + 1, E + x, N + y) for n, (x, y) in enumerate((x, y) for x in steps for y in steps)]
    await _toilets(connection, *points)
    place = {str(uprn): {"easting": easting, "northing": northing} for uprn, easting, northing in points}
    tagger = tagger_of(_FOLDERS.silos["assets"], b"k" * 32, "1")
    questions = [(E + x, N + y, r) for x in (-1.0, 0.0, 0.5) for y in (0.0, 999.5) for r in (0.0, 0.5, 1000.0, 1414.3)]
    for (easting, northing, metres), rows in zip(questions, await asked(connection, NEAR, *questions), strict=True):
        tags = set(tagger.circle_tags("toilet", "tile", easting, northing, metres)) - {tagger.table_tag("toilet")}
        wanted = {n for n, at in place.items() if math.dist((easting, northing), tuple(at.values())) <= metres}
        assert {row["uprn"] for row in rows} == wanted
        for row in rows:
            assert tags & tagger.row_tags("toilet", place[row["uprn"]])


_ALPHABET = ["a", "b", "\u00fc", "z", "-", "'", " ", "\ud7ff", "\ue000", "\uffff", "\U0001f600", "\U0010fffe", "\u0e01"]


async def _streets(connection: asyncpg.Connection, streets: list[str]) -> None:
    await connection.executemany(
        "insert into silo_addresses.address (uprn, usrn, street, street_name, town, postcode, easting, northing, "
        "logical_status, custodian, classification, paon, address) "
        "values ($1, 1, $2, $3, 'Lancing', 'BN15 9JB', 1, 1, 1, 1, 'RD', '1', 'x')",
        [(n + 1, street, name(street)) for n, street in enumerate(streets)],
    )


async def test_a_beginning_finds_exactly_what_begins_with_it(connection: asyncpg.Connection) -> None:
    """Up to the last code points, around the gap of the surrogates, and for letters that a language sorts elsewhere."""
    chance = random.Random(7)
    streets = sorted({"ab" + "".join(chance.choices(_ALPHABET, k=chance.randint(1, 3))) + "x" for _ in range(150)})
    await _streets(connection, streets)
    beginnings = ["ab" + one for one in _ALPHABET if one != " "] + ["abaz", "ab\U0010fffe\U0010fffe", "ac", "ABZ"]
    answers = await asked(connection, STREETS, *[(one,) for one in beginnings])
    for beginning, rows in zip(beginnings, answers, strict=True):
        wanted = sorted(street for street in streets if name(street).startswith(name(beginning)))
        assert len(rows) == min(len(wanted), 20)
        assert {row["street"] for row in rows} <= set(wanted)
        if len(wanted) <= 20:
            assert {row["street"] for row in rows} == set(wanted)
    assert not any(LAST in beginning for beginning in beginnings)


async def test_a_street_is_found_however_it_is_typed(connection: asyncpg.Connection) -> None:
    """Small letters, a typographic apostrophe or none of the spaces that are too many."""
    await _streets(connection, ["St Mary\u2019s  Close", "St Marys Close", "Crabtree Lane", "Z\u00fcrich Way"])
    typed = [("ST MARY'S",), ("st mary\u2019s cl",), ("st  marys",), ("Zu\u0308r",), ("zur",)]
    answers = await asked(connection, STREETS, *typed)
    assert [[row["street"] for row in rows] for rows in answers] == [
        ["St Mary\u2019s  Close"], ["St Mary\u2019s  Close"], ["St Marys Close"], ["Z\u00fcrich Way"], [],
    ]  # fmt: skip


async def test_a_beginning_uses_the_index_alone_and_in_a_batch(connection: asyncpg.Connection) -> None:
    """Whatever collation the database has: the index sorts by code points, as the range does."""
    await _streets(connection, [f"{n:05} Lane" for n in range(3000)])
    await connection.execute(
        "analyze silo_addresses.address; set search_path = silo_addresses; set enable_seqscan = off"
    )
    _, batch = compile_sql(STREETS)
    await connection.execute(f"prepare alone (text) as {compile_one(STREETS)}")
    await connection.execute(f"prepare batch (text[]) as {batch}")
    for question in ("alone('00123')", "batch('{00123,00456,00789}')"):
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain execute {question}"))
        assert "address_by_street_c" in plan, plan
        assert "Index Cond" in plan
