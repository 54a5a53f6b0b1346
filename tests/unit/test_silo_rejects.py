"""What a rejects report shows, and what it never shows."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streams.silos import SiloError
from streams.silos.rejects import RejectsReport, shown

LINE = ("claims.csv", None, 7, "NI_NUMBER", "(personal, 9 characters)", "is not a National Insurance number")


async def lines(*batches: Sequence[Sequence[Any]]) -> AsyncIterator[Sequence[Sequence[Any]]]:
    for batch in batches:
        yield batch


def test_a_personal_value_is_shown_by_its_length_only() -> None:
    """Not even the first letter of a personal value is in a report."""
    assert shown("QQ123456Z", personal=True) == "(personal, 9 characters)"
    assert shown("", personal=True) == ""


def test_other_values_are_shown_short_and_harmless() -> None:
    """Long values are cut, and characters that cannot be stored or would move the cursor are replaced."""
    assert shown("Mens", personal=False) == "Mens"
    assert len(shown("x" * 500, personal=False)) == 80
    assert shown("a\x00b\udce9\nc", personal=False) == "a\ufffdb\ufffd\ufffdc"


async def test_the_report_is_whole_or_not_there(tmp_path: Path) -> None:
    """Until a load is committed its report lies beside its place; one that fails leaves the earlier report alone."""
    path = tmp_path / "reports" / "claims-rejects.csv"
    async with RejectsReport(path) as report:
        await report.write(lines([LINE], [LINE]))
        assert not path.exists()
        assert report.publish() == path
    async with RejectsReport(path) as report:
        await report.write(lines([LINE] * 5))  # this load fails before it may publish
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.reader(file))
    assert found[0] == ["file", "sheet", "row", "column", "value", "reason"]
    assert len(found) == 3
    assert [each.name for each in path.parent.iterdir()] == ["claims-rejects.csv"]
    assert path.stat().st_mode & 0o077 == 0


async def test_a_load_without_rejects_takes_the_old_report_away(tmp_path: Path) -> None:
    """A report that is there is about the newest load."""
    path = tmp_path / "claims-rejects.csv"
    for batch in ([LINE], []):
        async with RejectsReport(path) as report:
            await report.write(lines(batch))
            assert report.publish() == (path if batch else None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ['=HYPERLINK("http://example.org")', "+1", "-1", "@SUM(A1)", "\t=1"])
async def test_a_cell_is_not_a_formula(tmp_path: Path, value: str) -> None:
    """A value of an unchecked file does not run when the report is opened in a spreadsheet."""
    async with RejectsReport(tmp_path / "r.csv") as report:
        await report.write(lines([("a.csv", None, 2, "Notes", value, "is not one of: a, b")]))
        report.publish()
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file))[1][4] == f"'{value}"


async def test_a_report_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """A folder that cannot be made is named before the load changes anything."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SiloError, match=r"rejects report .* cannot be written"):
        async with RejectsReport(tmp_path / "file" / "r.csv"):
            pass
