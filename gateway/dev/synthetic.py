"""Synthetic silo files for the demo and the tests: the same bytes every time, and nothing in them real.

Streets are those of the public toilets in deploy/silos/assets; everything that stands in them is made up. UPRNs begin
with 9999 and USRNs with 999, which no authority's batch does; BN59 is a postcode district that Royal Mail does not use;
National Insurance numbers begin with QQ, which is never issued; telephone numbers are of the ranges Ofcom keeps for
drama; e-mail addresses are at example.org. Every address row says SYNTHETIC.
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ADDRESS_COLUMNS = (
    "UPRN", "USRN", "LPI_KEY", "LANGUAGE", "LOGICAL_STATUS", "START_DATE", "END_DATE", "LAST_UPDATE_DATE",
    "ORGANISATION", "SAO_START_NUMBER", "SAO_START_SUFFIX", "SAO_END_NUMBER", "SAO_END_SUFFIX", "SAO_TEXT",
    "PAO_START_NUMBER", "PAO_START_SUFFIX", "PAO_END_NUMBER", "PAO_END_SUFFIX", "PAO_TEXT", "STREET_DESCRIPTION",
    "LOCALITY", "TOWN_NAME", "ADMINISTRATIVE_AREA", "POSTCODE_LOCATOR", "X_COORDINATE", "Y_COORDINATE", "RPC",
    "BLPU_STATE", "CLASSIFICATION_CODE", "LOCAL_CUSTODIAN_CODE", "POSTAL_ADDRESS", "PROVENANCE",
)  # fmt: skip
CLAIM_COLUMNS = (
    "CLAIM_REF", "NI_NUMBER", "SURNAME", "FORENAME", "DATE_OF_BIRTH", "UPRN", "POSTCODE", "EMAIL", "TELEPHONE",
    "CLAIM_TYPE", "STATUS", "WEEKLY_AMOUNT_PENCE", "OPENED_ON", "CLOSED_ON",
)  # fmt: skip

# The first postcode of the gazetteer, for a form to suggest.
EXAMPLE_POSTCODE = "BN59 1AA"

_FIRST_UPRN = 999_900_000_001
_FIRST_USRN = 99_900_001
_PREMISES_A_STREET = 150
_PREMISES_A_POSTCODE = 15
_INWARD = "ABDEFGHJLNPQRSTUWXYZ"
_CLAIMS = 420
# A Monday well before the project began: the files do not depend on the day on which they are made.
_DAY = dt.date(2026, 9, 28)


@dataclass(frozen=True, slots=True)
class _Street:
    name: str
    locality: str
    town: str
    sector: int
    easting: int
    northing: int


_STREETS = (
    _Street("BRIGHTON ROAD", "", "LANCING", 1, 518072, 103649),
    _Street("CRABTREE LANE", "", "LANCING", 1, 518225, 104730),
    _Street("SHOPSDAM ROAD", "", "LANCING", 1, 518915, 103795),
    _Street("YEW TREE CLOSE", "", "LANCING", 1, 518222, 104168),
    _Street("WEST BEACH ROAD", "", "LANCING", 1, 520354, 104246),
    _Street("BEACH GREEN", "SHOREHAM BEACH", "SHOREHAM-BY-SEA", 2, 521299, 104515),
    _Street("BRIGHTON ROAD", "", "SHOREHAM-BY-SEA", 2, 521048, 104977),
    _Street("FORTHAVEN", "SHOREHAM BEACH", "SHOREHAM-BY-SEA", 2, 523294, 104588),
    _Street("MIDDLE STREET", "", "SHOREHAM-BY-SEA", 2, 521515, 105083),
    _Street("MILL LANE", "", "SHOREHAM-BY-SEA", 2, 521440, 105725),
    _Street("UPPER SHOREHAM ROAD", "", "SHOREHAM-BY-SEA", 3, 522118, 105939),
    _Street("HAM ROAD", "", "SHOREHAM-BY-SEA", 3, 522083, 105168),
    _Street("SOUTHWICK STREET", "", "SOUTHWICK", 4, 524401, 105405),
    _Street("BASIN ROAD SOUTH", "", "SOUTHWICK", 4, 524375, 104753),
)

# Names nobody has: each says that it is made up.
_SURNAMES = (
    "Exampleson", "Madeupley", "Inventwell", "Fictonby", "Samplethorpe", "Testingham", "Pretendley", "Notrealson",
    "Placeholden", "Dummerstone", "Imaginby", "Fabricote", "Nonsuchworth", "Demoford", "Makebelieve-Jones",
    "O'Fictional", "Llanesiampl", "Specimenby", "Hypothetick", "Supposely",
)  # fmt: skip
_FORENAMES = (
    "Testina", "Sampler", "Exempla", "Mocky", "Fictoria", "Demetrio", "Pretendra", "Placid", "Inventa", "Dummond",
    "Imogination", "Fabrice", "Zoë-Test", "Hypo", "Thetica", "Specimena",
)  # fmt: skip
_CLAIM_TYPES = ("housing benefit", "council tax reduction", "discretionary housing payment", "free school meals")


def addresses() -> Iterator[dict[str, str]]:
    """The rows of the gazetteer, a few thousand, street by street."""
    rng = random.Random("silogate addresses 1")  # noqa: S311 - made-up data, the same every time
    uprn = _FIRST_UPRN
    postcodes = {sector: _postcodes(sector) for sector in {street.sector for street in _STREETS}}
    for usrn, street in enumerate(_STREETS, _FIRST_USRN):
        angle = rng.uniform(0, math.pi)
        for place in range(_PREMISES_A_STREET):
            if place % _PREMISES_A_POSTCODE == 0:
                postcode = next(postcodes[street.sector])
            for unit in _premises(rng, place):
                yield _address(rng, street, angle, place, unit) | {
                    "UPRN": f"{uprn:012d}",
                    "USRN": str(usrn),
                    "LPI_KEY": f"3805L{uprn % 1_000_000_000:09d}",
                    "POSTCODE_LOCATOR": postcode,
                }
                uprn += 1


def claims() -> Iterator[dict[str, str]]:
    """Claims of made-up people who live at addresses of the gazetteer; some people have more than one."""
    rng = random.Random("silogate claims 1")  # noqa: S311 - made-up data, the same every time
    homes = [row for row in addresses() if row["CLASSIFICATION_CODE"].startswith("RD") and row["LOGICAL_STATUS"] == "1"]
    number = 0
    while number < _CLAIMS:
        person = _person(rng, number, homes)
        for claim_type in rng.sample(_CLAIM_TYPES, rng.choice((1, 1, 1, 2))):
            opened = _DAY - dt.timedelta(days=rng.randrange(10, 2_000))
            closed = rng.random() < 0.35
            yield person | {
                "CLAIM_REF": f"SYN-{number:06d}",
                "CLAIM_TYPE": claim_type,
                "STATUS": "closed" if closed else "open",
                "WEEKLY_AMOUNT_PENCE": str(rng.randrange(500, 25_000)),
                "OPENED_ON": _day(opened),
                "CLOSED_ON": _day(min(_DAY, opened + dt.timedelta(days=rng.randrange(7, 400)))) if closed else "",
            }
            number += 1


def write_addresses(path: Path) -> int:
    """Write the gazetteer as CSV and return how many rows it has."""
    return _write(path, ADDRESS_COLUMNS, addresses())


def write_claims(path: Path) -> int:
    """Write the claims as CSV and return how many rows they are."""
    return _write(path, CLAIM_COLUMNS, claims())


def stock(folder: Path, silos: Path) -> None:
    """Fill `folder` with the source files of the three silos, each under its silo's name.

    The assets are copied from `silos`, with their time stamp, so that a demo or a test may edit its own copy.
    """
    write_addresses(folder / "addresses" / "addresses.csv")
    write_claims(folder / "claims" / "claims.csv")
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    shutil.copy2(silos / "assets" / "assets.csv", folder / "assets" / "assets.csv")


def _postcodes(sector: int) -> Iterator[str]:
    return (f"BN59 {sector}{first}{second}" for first, second in product(_INWARD, repeat=2))


def _premises(rng: random.Random, place: int) -> list[dict[str, str]]:
    """What stands at one place of a street: a house, a shop, or a building with flats."""
    number = {"PAO_START_NUMBER": str(place + 1)}
    chance = rng.random()
    if chance < 0.06:
        trader = {"ORGANISATION": f"SYNTHETIC TRADER {rng.randrange(1000):03d}", "CLASSIFICATION_CODE": "CR08"}
        wide = {"PAO_END_NUMBER": str(place + 3)} if chance < 0.02 else {}
        return [number | wide | trader]
    if chance < 0.12:
        house = number | {
            "PAO_TEXT": f"SAMPLE {rng.choice(('COURT', 'HOUSE', 'LODGE'))}",
            "CLASSIFICATION_CODE": "RD06",
        }
        return [house | {"SAO_TEXT": f"FLAT {flat}"} for flat in range(1, rng.randrange(4, 9))]
    kind = {"CLASSIFICATION_CODE": rng.choice(("RD02", "RD03", "RD04", "RD04"))}
    if chance < 0.16:
        return [number | kind, number | kind | {"PAO_START_SUFFIX": "A"}]
    if chance < 0.19:
        parts = (("1", "2"), ("3", "4"))
        return [number | kind | {"SAO_START_NUMBER": start, "SAO_END_NUMBER": end} for start, end in parts]
    return [number | kind]


def _address(rng: random.Random, street: _Street, angle: float, place: int, unit: dict[str, str]) -> dict[str, str]:
    along, across = (place - _PREMISES_A_STREET / 2) * 6.0, 12.0 if place % 2 else -12.0
    status = rng.choices(("1", "6", "8"), (97, 1, 2))[0]
    start = _DAY - dt.timedelta(days=rng.randrange(1_000, 9_000))
    ended = _day(start + dt.timedelta(days=rng.randrange(100, 900))) if status == "8" else ""
    return dict.fromkeys(ADDRESS_COLUMNS, "") | unit | {
        "LANGUAGE": "ENG",
        "LOGICAL_STATUS": status,
        "START_DATE": _day(start),
        "END_DATE": ended,
        "LAST_UPDATE_DATE": _day(_DAY - dt.timedelta(days=rng.randrange(400))),
        "STREET_DESCRIPTION": street.name,
        "LOCALITY": street.locality,
        "TOWN_NAME": street.town,
        "ADMINISTRATIVE_AREA": "WEST SUSSEX",
        "X_COORDINATE": f"{street.easting + along * math.cos(angle) - across * math.sin(angle):.2f}",
        "Y_COORDINATE": f"{street.northing + along * math.sin(angle) + across * math.cos(angle):.2f}",
        "RPC": "1",
        "BLPU_STATE": {"1": "2", "6": "1", "8": "4"}[status],
        "LOCAL_CUSTODIAN_CODE": "3805",
        "POSTAL_ADDRESS": "C" if "SAO_TEXT" in unit else "S",
        "PROVENANCE": "SYNTHETIC",
    }  # fmt: skip


def _person(rng: random.Random, number: int, homes: list[dict[str, str]]) -> dict[str, str]:
    forename, surname, home = rng.choice(_FORENAMES), rng.choice(_SURNAMES), rng.choice(homes)
    drama = rng.choice(("01632 960", "07700 900"))
    return {
        "NI_NUMBER": f"QQ{number + 100_000:06d}{rng.choice('ABCD')}",
        "SURNAME": surname,
        "FORENAME": forename,
        "DATE_OF_BIRTH": _day(dt.date(1940, 1, 1) + dt.timedelta(days=rng.randrange(365 * 65))),
        "UPRN": home["UPRN"],
        "POSTCODE": home["POSTCODE_LOCATOR"],
        "EMAIL": f"claimant.{number}@example.org" if rng.random() < 0.8 else "",
        "TELEPHONE": f"{drama}{rng.randrange(1000):03d}" if rng.random() < 0.8 else "",
    }


def _day(day: dt.date) -> str:
    return f"{day:%d/%m/%Y}"


def _write(path: Path, columns: tuple[str, ...], rows: Iterable[dict[str, str]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            count += 1
    unfinished.replace(path)
    return count
