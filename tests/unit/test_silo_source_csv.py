"""CSV files as people send them: read where they can be, refused with a sentence where they cannot."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from streams.silos import SchemaDrift, SourceUnreadable
from streams.silos.source_csv import RawRow, open_csv


def rows_of(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> tuple[list[str], list[RawRow]]:
    with open_csv(path, encoding, delimiter) as file:
        rows = [row for _ in range(50) for row in file.rows(2)]
        file.position()
        return file.header, rows


def write(folder: Path, content: bytes | str) -> Path:
    path = folder / "lamps.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "encoding", "delimiter"),
    [
        ("UPRN,Street\r\n1,Mill Lane\r\n", "utf-8", ","),
        ("\ufeffUPRN,Street\n1,Mill Lane\n", "utf-8", ","),
        ("UPRN;Street\n1;Mill Lane", "utf-8", ";"),
        ('"UPRN"\t"Street "\n"1"\t"Mill Lane"', "utf-8", "\t"),
        ("UPRN,Street\n1,Mill Lane\n".encode("utf-16"), "utf-16", ","),
        ("UPRN,Street\n1,Mill Lane\n", "cp1252", ","),
    ],
)
def test_one_table_however_it_was_saved(tmp_path: Path, content: bytes | str, encoding: str, delimiter: str) -> None:
    """Byte order mark, line ends, quotes, delimiter and encoding make no difference to what is read."""
    header, rows = rows_of(write(tmp_path, content), encoding, delimiter)
    assert header == ["UPRN", "Street"]
    assert rows == [RawRow(2, ["1", "Mill Lane"])]


def test_rows_are_numbered_as_a_spreadsheet_numbers_them(tmp_path: Path) -> None:
    """A quoted new line does not count as a row; a blank row counts and is left out."""
    path = write(tmp_path, 'UPRN,Street\n1,"Mill\nLane"\n\n , \n2,Ham Road\n')
    assert [(row.number, row.cells[0]) for row in rows_of(path)[1]] == [(2, "1"), (5, "2")]
    with open_csv(path, "utf-8", ",") as file:
        file.rows(10)
        assert file.blank == 2


def test_a_row_that_cannot_be_aligned_is_a_fault_of_its_own(tmp_path: Path) -> None:
    """Too few cells, too many, and broken quotes refuse that row; the rows after it are read."""
    path = write(tmp_path, 'UPRN,Street\n1\n2,Ham Road,x\n3,"Mill" Lane\n4,Middle Street\n')
    faults = [(row.number, row.fault) for row in rows_of(path)[1]]
    assert faults[:2] == [
        (2, "has 1 columns where the headings have 2"),
        (3, "has 3 columns where the headings have 2"),
    ]
    assert faults[2][1] is not None
    assert faults[3] == (5, None)


def test_bytes_outside_the_encoding_reach_the_rules_as_such(tmp_path: Path) -> None:
    """A Latin-1 letter in a UTF-8 file spoils its own value and no other."""
    rows = rows_of(write(tmp_path, b"UPRN,Street\n1,Caf\xe9 Row\n2,Ham Road\n"))[1]
    assert rows == [RawRow(2, ["1", "Caf\udce9 Row"]), RawRow(3, ["2", "Ham Road"])]


@pytest.mark.parametrize(
    ("content", "encoding", "sentence"),
    [
        ("", "utf-8", "is empty: its first row must be the headings"),
        ("\n\n", "utf-8", "is empty"),
        (b"\xff\xfeU\x00", "utf-8", "begins with the mark of utf-16, but silo.yaml says utf-8"),
        ("\ufeffUPRN\n", "cp1252", "begins with the mark of utf-8, but silo.yaml says cp1252"),
        (b"PK\x03\x04xl/workbook.xml", "utf-8", "is a workbook or an archive"),
        ('UPRN,Street\n1,"Mill Lane\n2,Ham Road\n', "utf-8", "does not end; the file is cut short"),
        ('UPRN,Street\n1,"' + "x" * 200_000 + "\n", "utf-8", "does not end; the file is cut short"),
        (b"UPRN,Str\xffeet\n1,x\n", "utf-8", "the headings are not utf-8 text"),
        (b"UPRN,Street\n".decode().encode("utf-16") + b"\x00\xd8\x0a\x00", "utf-16", "is not utf-16"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(
    tmp_path: Path, content: bytes | str, encoding: str, sentence: str
) -> None:
    """Empty, cut short, or of another kind than declared: one clear sentence, and no row is taken from it."""
    with pytest.raises(SourceUnreadable, match=sentence):
        rows_of(write(tmp_path, content), encoding)


def test_a_heading_twice_is_refused(tmp_path: Path) -> None:
    """Nobody knows which of two columns of one name is meant; columns without a name do not matter."""
    with pytest.raises(SchemaDrift, match="has more than one column Street"):
        rows_of(write(tmp_path, "UPRN,Street,Street\n1,a,b\n"))
    assert rows_of(write(tmp_path, "UPRN,,\n1,,\n"))[0] == ["UPRN", "", ""]


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder, and a pipe that would hang are refused at once."""
    with pytest.raises(SourceUnreadable, match=r"lamps.csv is not there"):
        rows_of(tmp_path / "lamps.csv")
    with pytest.raises(SourceUnreadable, match="is not a file"):
        rows_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SourceUnreadable, match="is not a file"):
        rows_of(tmp_path / "pipe.csv")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Written to, or replaced, between opening and the last row: nothing of it is believed."""
    path = write(tmp_path, "UPRN\n1\n")
    with open_csv(path, "utf-8", ",") as file:
        file.rows(10)
        with path.open("a") as more:
            more.write("2\n")
        with pytest.raises(SourceUnreadable, match="changed while it was read"):
            file.position()
    with open_csv(path, "utf-8", ",") as file:
        file.rows(10)
        (tmp_path / "new").mkdir()
        write(tmp_path / "new", "UPRN\n9\n").replace(path)
        with pytest.raises(SourceUnreadable, match="changed while it was read"):
            file.position()
        path.unlink()
        with pytest.raises(SourceUnreadable, match="went away while it was read"):
            file.position()


def test_the_position_says_which_content_was_read(tmp_path: Path) -> None:
    """Name, length, hash and time stamp of the file go with the image made from it; the file is not touched."""
    content = b"UPRN,Street\n1,Ham Road\n"
    path = write(tmp_path, content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    with open_csv(path, "utf-8", ",") as file:
        while file.rows(1):
            pass
        found = file.position()
    assert (found.path, found.bytes) == ("lamps.csv", len(content))
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.modified.isoformat() == "2023-11-14T22:13:20+00:00"
    assert path.read_bytes() == content
