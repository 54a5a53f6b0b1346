"""The synthetic silos: the same every time, of the right form, and clearly not real."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

from cache.values import VALUE_TYPES
from gateway.dev import synthetic

SILOS = Path(__file__).resolve().parents[2] / "deploy" / "silos"


def test_the_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    """Two runs differ in nothing, so that loading the second changes nothing."""
    for name in ("first", "second"):
        synthetic.stock(tmp_path / name, SILOS)
    for silo in ("assets", "addresses", "claims"):
        file = Path(silo) / f"{silo}.csv"
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_assets_are_copied_with_their_age(tmp_path: Path) -> None:
    """The copy is as old as the original: copying a list does not make it fresher."""
    synthetic.stock(tmp_path, SILOS)
    original, copy = SILOS / "assets" / "assets.csv", tmp_path / "assets" / "assets.csv"
    assert copy.read_bytes() == original.read_bytes()
    assert copy.stat().st_mtime == original.stat().st_mtime


def test_no_address_can_be_mistaken_for_a_real_one() -> None:
    """UPRN, USRN and postcode are well-formed and of ranges that nobody has; each row says SYNTHETIC."""
    rows = list(synthetic.addresses())
    assert 2_000 < len(rows) < 5_000
    assert len({row["UPRN"] for row in rows}) == len(rows)
    for row in rows:
        assert 999_900_000_000 < VALUE_TYPES["uprn"].normalise(row["UPRN"]) < 10**12
        assert VALUE_TYPES["usrn"].normalise(row["USRN"]) > 99_900_000
        assert re.fullmatch(r"BN59 [1-4][A-Z]{2}", VALUE_TYPES["postcode"].normalise(row["POSTCODE_LOCATOR"]))
        assert row["PROVENANCE"] == "SYNTHETIC"
        assert row["LOCAL_CUSTODIAN_CODE"] == "3805"
        assert not row["ORGANISATION"] or row["ORGANISATION"].startswith("SYNTHETIC ")
    assert rows[0]["POSTCODE_LOCATOR"] == synthetic.EXAMPLE_POSTCODE


def test_addresses_lie_around_the_assets() -> None:
    """Every address is within 600 m of a public toilet, and every toilet but the parks' has addresses around it."""
    with (SILOS / "assets" / "assets.csv").open(encoding="utf-8", newline="") as file:
        toilets = [(float(row["GeoX"]), float(row["GeoY"])) for row in csv.DictReader(file)]
    homes = [(float(row["X_COORDINATE"]), float(row["Y_COORDINATE"])) for row in synthetic.addresses()]
    assert all(min(math.dist(home, toilet) for toilet in toilets) < 600 for home in homes)
    assert all(min(math.dist(home, toilet) for home in homes) < 600 for toilet in toilets)


def test_nobody_can_be_mistaken_for_a_claimant() -> None:
    """National Insurance numbers are never issued, telephones are of drama ranges, e-mail goes to example.org."""
    homes = {row["UPRN"]: row for row in synthetic.addresses()}
    rows = list(synthetic.claims())
    assert len({row["CLAIM_REF"] for row in rows}) == len(rows)
    assert len({row["NI_NUMBER"] for row in rows}) < len(rows), "some people have two claims"
    for row in rows:
        assert VALUE_TYPES["nino"].normalise(row["NI_NUMBER"]).startswith("QQ")
        assert re.fullmatch(r"(01632 960|07700 900)\d{3}|", row["TELEPHONE"])
        assert re.fullmatch(r"[a-z0-9.]+@example\.org|", row["EMAIL"])
        assert homes[row["UPRN"]]["POSTCODE_LOCATOR"] == row["POSTCODE"]
        assert (row["STATUS"] == "closed") is bool(row["CLOSED_ON"])
