"""A delimited text file as a source: read once, in chunks, never written to and never locked."""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from streams.silos.errors import SchemaDrift, SourceUnreadable


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source. `number` counts as a spreadsheet shows it: the headings are row 1. `fault`: not readable."""

    number: int
    cells: Sequence[str]
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class FilePosition:
    """Which content was read, kept with the image that was made from it."""

    path: str
    bytes: int
    sha256: str
    modified: dt.datetime


class _Measured(io.RawIOBase):
    """Counts and hashes what is read, so that what was loaded can be told from what lies there later."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        self.count += len(data)
        return len(data)


class CsvFile:
    """An open file: `header`, then `rows` until none is left, then `position`, which proves that nothing moved."""

    def __init__(self, path: Path, file: BinaryIO, encoding: str, delimiter: str) -> None:
        self.path = path
        self._file = file
        self._encoding = encoding
        self._opened = os.fstat(file.fileno())
        self._measured = _Measured(file)
        self._number = 1
        # Bytes that do not fit the encoding come through as lone surrogates: the row that has them is refused, not all.
        errors = "strict" if encoding == "utf-16" else "surrogateescape"
        text = io.TextIOWrapper(io.BufferedReader(self._measured, 1 << 16), _decoder(encoding), errors, newline="")
        self._reader = csv.reader(text, delimiter=delimiter, strict=True)
        self.blank = 0
        self.header = self._header()

    @property
    def bytes_total(self) -> int:
        return self._opened.st_size

    @property
    def bytes_read(self) -> int:
        return self._measured.count

    def rows(self, count: int) -> list[RawRow]:
        """The next rows, at most `count`; an empty list at the end of the file."""
        found: list[RawRow] = []
        while len(found) < count and (row := self._next()) is not None:
            if row.fault is not None or any(cell.strip() for cell in row.cells):
                found.append(row)
            else:
                self.blank += 1
        return found

    def position(self) -> FilePosition:
        """What was read; raises SourceUnreadable if the file is no longer what was opened."""
        for now in (os.fstat(self._file.fileno()), self._stat()):
            if _identity(now) != _identity(self._opened) or self._measured.count != now.st_size:
                raise SourceUnreadable(f"{self.path} changed while it was read; load it again when it is complete")
        modified = dt.datetime.fromtimestamp(self._opened.st_mtime, dt.UTC)
        return FilePosition(self.path.name, self._measured.count, self._measured.digest.hexdigest(), modified)

    def _stat(self) -> os.stat_result:
        try:
            return self.path.stat()
        except OSError as error:
            raise SourceUnreadable(f"{self.path} went away while it was read: {error.strerror}") from None

    def _header(self) -> list[str]:
        try:
            first = next(self._reader, None)
        except (csv.Error, UnicodeError) as error:
            raise SourceUnreadable(f"{self.path}: the headings cannot be read: {_plain(error)}") from None
        header = [heading.strip() for heading in first or ()]
        if not any(header):
            raise SourceUnreadable(f"{self.path} is empty: its first row must be the headings")
        if any("\ud800" <= char <= "\udfff" or char == "\x00" for heading in header for char in heading):
            raise SourceUnreadable(f"{self.path}: the headings are not {self._encoding} text")
        if twice := sorted({heading for heading in header if heading and header.count(heading) > 1}):
            raise SchemaDrift(f"{self.path} has more than one column {', '.join(twice)}")
        return header

    def _next(self) -> RawRow | None:
        self._number += 1
        try:
            cells = next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            return self._unreadable(error)
        except UnicodeError as error:
            raise SourceUnreadable(f"{self.path}: row {self._number}: {_plain(error)}") from None
        if cells and len(cells) != len(self.header):
            width, wanted = len(cells), len(self.header)
            return RawRow(self._number, (), f"has {width} columns where the headings have {wanted}")
        return RawRow(self._number, cells)

    def _unreadable(self, error: csv.Error) -> RawRow:
        # These two mean that the rest of the file was taken for one value: nobody knows which rows that lost.
        if "unexpected end of data" in str(error) or "field larger" in str(error):
            raise SourceUnreadable(
                f"{self.path}: a quoted value that begins near row {self._number} does not end; "
                "the file is cut short, or a quotation mark is missing"
            ) from None
        return RawRow(self._number, (), f"is not {self._encoding} text with quoted values: {error}")


@contextmanager
def open_csv(path: Path, encoding: str, delimiter: str) -> Iterator[CsvFile]:
    """Open a source file; raises SourceUnreadable or SchemaDrift if it cannot be one."""
    with _opened(path) as file:
        _check_mark(path, file.read(4), encoding)
        file.seek(0)
        yield CsvFile(path, file, encoding, delimiter)


def _opened(path: Path) -> BinaryIO:
    try:
        # Without O_NONBLOCK the opening of a named pipe would wait for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceUnreadable(f"{path} is not there") from None
    except OSError as error:
        raise SourceUnreadable(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnreadable(f"{path} is not a file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _check_mark(path: Path, start: bytes, encoding: str) -> None:
    marks = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    for mark, said in marks.items():
        if start.startswith(mark) and encoding != said:
            raise SourceUnreadable(f"{path} begins with the mark of {said}, but silo.yaml says {encoding}")
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise SourceUnreadable(f"{path} is a workbook or an archive, not a CSV file")


def _decoder(encoding: str) -> str:
    return "utf-8-sig" if encoding == "utf-8" else encoding


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _plain(error: Exception) -> str:
    # a UnicodeDecodeError's own text quotes the bytes
    return f"byte {error.start} is not {error.encoding} text" if isinstance(error, UnicodeDecodeError) else str(error)
