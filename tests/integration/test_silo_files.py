"""The three silos of the demo in a real PostgreSQL: what is good, what is refused, and why."""

from __future__ import annotations

import csv
import datetime as dt
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway.dev import synthetic
from gateway.dev.addresses import Database
from streams.silos import load
from tests.silos import SILOS, TYPES, declared, pool_of, tagger_of


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with pool_of(gateway_database) as pool:
        yield pool


def is_good_toilet(row: dict[str, str]) -> bool:
    """The rules of the published schema (v0.43), written once more and differently from silo.yaml."""
    categories = ("female", "male", "female and male", "unisex", "male urinal", "children only", "none", "")
    flags = list(row)[12:19]  # RADARKeyNeeded to PartOfCommunityScheme
    try:
        dt.datetime.strptime(row["ExtractDate"][:10], "%d/%m/%Y")  # noqa: DTZ007
        east, north, _ = float(row["GeoX"]), float(row["GeoY"]), int(row["UPRN"])
    except ValueError:
        return False
    return (
        row["ExtractDate"][10:] in ("", " 00:00")
        and row["OrganisationLabel"] != ""
        and row["CoordinateReferenceSystem"] == "OSGB36"
        and 500_000 < east < 530_000
        and 100_000 < north < 110_000
        and all(row[name].lower() in categories for name in ("Category", "AccessibleCategory"))
        and all(row[flag].lower() in ("true", "false", "yes", "no", "") for flag in flags)
    )


async def test_the_councils_toilets_load_with_the_rejects_that_the_schema_asks_for(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    """13 of 15 rows are good, counted without the loader; the two others have a line for each of five reasons."""
    with (SILOS / "assets" / "assets.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    good = {int(row["UPRN"]): row for row in rows if is_good_toilet(row)}
    assert (len(rows), len(good)) == (15, 13)
    silo = declared("assets")
    summary = await load(
        silo, types=TYPES, pool=pool, tagger=tagger_of(silo), folder=SILOS / "assets", reports=tmp_path
    )  # fmt: skip
    assert (summary.added, summary.rejected, summary.total) == (13, 2, 13)
    stored = {row["uprn"]: row for row in await pool.fetch("select * from silo_assets.toilet")}
    assert stored.keys() == good.keys()
    for uprn, row in good.items():
        assert stored[uprn]["name"] == row["LocationText"]
        assert (stored[uprn]["easting"], stored[uprn]["northing"]) == (float(row["GeoX"]), float(row["GeoY"]))
        assert stored[uprn]["category"] == row["Category"].replace("Female and male", "Female and Male")
        assert stored[uprn]["radar_key"] is (row["RADARKeyNeeded"] == "Yes")
        assert stored[uprn]["extract_date"] == dt.date(2014, 7, 7)
    assert summary.rejects_csv == tmp_path / "assets-rejects.csv"
    with summary.rejects_csv.open(encoding="utf-8-sig", newline="") as report:
        found = [(row["row"], row["column"], row["value"]) for row in csv.DictReader(report)]
    assert sorted(found) == [
        ("2", "ExtractDate", ""),
        ("2", "OrganisationLabel", ""),
        ("4", "Category", "Mens"),
        ("4", "CoordinateReferenceSystem", "OSGB3"),
        ("4", "ExtractDate", "2014-07-07 00:00"),
    ]


async def test_a_refused_toilet_puts_its_own_values_in_doubt_and_no_others(pool: asyncpg.Pool) -> None:
    """Each reject carries the tags of its row's UPRN and tile, so that no other UPRN becomes `cannot_tell`."""
    silo = declared("assets")
    tagger = tagger_of(silo)
    await load(silo, types=TYPES, pool=pool, tagger=tagger, folder=SILOS / "assets")
    for number, uprn, place in ((2, 60001449, (518072, 103649)), (4, 60007428, (518915, 103795))):
        wanted = tagger.row_tags("toilet", {"uprn": uprn, "easting": place[0], "northing": place[1]})
        rows = await pool.fetch("select tags from silo_assets.reject where row_number = $1", number)
        assert rows
        assert all(set(row["tags"]) == wanted for row in rows)


@pytest.mark.parametrize(("name", "table"), [("addresses", "address"), ("claims", "claim")])
async def test_the_synthetic_silos_load_whole(pool: asyncpg.Pool, tmp_path: Path, name: str, table: str) -> None:
    """Every synthetic row is good, and a second load of the same file changes nothing."""
    synthetic.stock(tmp_path, SILOS)
    silo, folder = declared(name), tmp_path / name
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        count = sum(1 for _ in csv.reader(file)) - 1
    first = await load(silo, types=TYPES, pool=pool, tagger=tagger_of(silo), folder=folder)
    assert (first.added, first.rejected) == (count, 0)
    assert await pool.fetchval(f"select count(*) from silo_{name}.{table}") == count
    again = await load(silo, types=TYPES, pool=pool, tagger=tagger_of(silo), folder=folder)
    assert (again.unchanged, again.added, again.changed, again.removed) == (count, 0, 0, 0)


async def test_an_address_is_one_line_made_of_its_parts(pool: asyncpg.Pool, tmp_path: Path) -> None:
    """Flats, ranges, suffixes and organisations come out as people write them."""
    synthetic.stock(tmp_path, SILOS)
    silo = declared("addresses")
    await load(silo, types=TYPES, pool=pool, tagger=tagger_of(silo), folder=tmp_path / "addresses")
    rows = await pool.fetch("select * from silo_addresses.address")
    lines = [row["address"] for row in rows]
    assert any(re.fullmatch(r"1A BRIGHTON ROAD, LANCING, BN59 1AA", line) for line in lines)
    assert any(re.match(r"FLAT \d, SAMPLE \w+, \d+ \w", line) for line in lines)
    assert any(re.match(r"SYNTHETIC TRADER \d+, \d+-\d+ \w", line) for line in lines)
    assert any(row["saon"] == "1-2" for row in rows)
