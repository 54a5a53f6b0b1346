"""Rows that were refused: one line for each reason, for the silo's owner to mend the source by."""

from __future__ import annotations

import asyncio
import csv
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from streams.silos.errors import SiloError

_SHOWN = 80
_HEADINGS = ("file", "sheet", "row", "column", "value", "reason")

COLUMNS = ("file", "sheet", "row_number", "column_name", "value_shown", "reason", "tags", "table_name")


@dataclass(frozen=True, slots=True)
class Reject:
    """One reason against one row. `tags` is what the row puts in doubt; none: the whole table is in doubt."""

    file: str
    row_number: int
    column_name: str
    value_shown: str
    reason: str
    tags: tuple[str, ...]
    table_name: str
    sheet: str | None = None

    def record(self) -> tuple[Any, ...]:
        """In the order of COLUMNS."""
        return (
            self.file,
            self.sheet,
            self.row_number,
            self.column_name,
            self.value_shown,
            self.reason,
            list(self.tags),
            self.table_name,
        )


def shown(value: str, *, personal: bool) -> str:
    """What a report may say of a value: its length when it is personal, else its beginning, fit to be stored."""
    if personal:
        return f"(personal, {len(value)} characters)" if value else ""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value)
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"


class RejectsReport:
    """The report as a CSV file, complete or not there: written beside its place and moved there by `publish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        self._file: TextIO | None = None
        self._lines = 0

    async def __aenter__(self) -> Self:
        self._file = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)

    async def write(self, batches: AsyncIterator[Sequence[Sequence[Any]]]) -> None:
        """Append lines of (file, sheet, row, column, value, reason)."""
        async for lines in batches:
            await asyncio.to_thread(self._append, lines)

    def publish(self) -> Path | None:
        """Put the report in its place. Without a line there is none, and that of an earlier load goes."""
        assert self._file is not None  # noqa: S101 - the context manager opened it
        self._file.close()
        self._file = None
        if not self._lines:
            self._unfinished.unlink()
            self.path.unlink(missing_ok=True)
            return None
        self._unfinished.replace(self.path)
        return self.path

    def _open(self) -> TextIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise SiloError(f"the rejects report {self.path} cannot be written: {error.strerror}") from None
        file = os.fdopen(descriptor, "w", encoding="utf-8-sig", newline="")
        csv.writer(file).writerow(_HEADINGS)
        return file

    def _append(self, lines: Sequence[Sequence[Any]]) -> None:
        assert self._file is not None  # noqa: S101 - the context manager opened it
        csv.writer(self._file).writerows([[_inert(cell) for cell in line] for line in lines])
        self._lines += len(lines)


def _inert(cell: object) -> object:
    # A spreadsheet runs a cell that begins like a formula, and these cells come from files nobody has checked yet.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
