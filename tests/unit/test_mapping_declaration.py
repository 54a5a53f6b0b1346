"""Mistakes in a recipient's file are found before anything runs, and named by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streams.cases.casetype import CaseType
from streams.declared import InvalidDeclaration
from streams.mapping.columns import Column
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration
from streams.recipients.declaration import read_recipient
from tests.unit.mapping_case import CASE_TYPE, FIRST_FIELD, HEAD, USED, compiled, declared, mistakes

FOLDER = Path("deploy/integrations/report-a-problem")
STATUS = """status:
  column: state
  codes: [new, doing, done, no action]
  forward: {open: new, in_progress: doing, fixed: done, no_further_action: no action, closed: done}
  reverse: {new: open, doing: in_progress, done: fixed, no action: no_further_action}
"""


@pytest.mark.parametrize("name", ["street-team", "contractor"])
def test_the_recipients_of_the_integration_are_sound(name: str) -> None:
    """Both files of report-a-problem compile against its case type."""
    schema = json.loads((FOLDER / "case.schema.json").read_text())
    declaration = read_recipient(FOLDER / "recipients" / f"{name}.yaml", CaseType("public-toilet-problem", schema))
    assert declaration.recipient == name
    assert declaration.origin == f"recipient:{name}"


def test_a_recipient_is_named_as_its_file(tmp_path: Path) -> None:
    """A file copied and not renamed inside is found."""
    path = tmp_path / "parks.yaml"
    path.write_text(HEAD + "fields: [{to: x, from: category}]\n")
    with pytest.raises(InvalidDeclaration) as caught:
        read_recipient(path, CASE_TYPE)
    assert str(caught.value.problems[0]) == f"{path}:1: recipient: must be the file's name, parks"


def test_durations_are_read_as_written() -> None:
    """500ms, 2s, 5m and plain seconds mean what they say; anything else is refused at its line."""
    poll = declared("{to: x, from: category}", STATUS + "poll: {every: 500ms, overlap: 5m}\n").poll
    assert poll is not None
    assert (poll.every, poll.overlap, poll.page) == (0.5, 300.0, 200)
    found = mistakes("{to: x, from: category}", rest=STATUS + "poll: {every: soon}\n")
    (problem,) = found
    assert problem.startswith(f"street-team.yaml:{FIRST_FIELD + 6}: poll.every: 'soon' is not a duration")


@pytest.mark.parametrize(
    ("field", "where", "message"),
    [
        ("{to: x, from: category, size: 3}", "fields.0.size", "is not a field here"),
        ("{from: category}", "fields.0.to", "is missing"),
        ("{to: x, from: category, type: money}", "fields.0.type", "Input should be 'text'"),
        ("{to: x, from: asset.colour}", "fields[x].from", "the case type has no field asset.colour"),
        ("{to: x, from: asset}", "fields[x].from", "asset is not a single text, number or truth value"),
        ("{to: x, from: 'asset name'}", "fields[x].from", "is not a path such as"),
        ("{to: x, from: asset.name.}", "fields[x].from", "is not a path such as"),
        ("{to: x, from: 'asset[].name'}", "fields[x].from", "asset is not a list in the case type"),
        ("{to: x, from: 'tags[][0]'}", "fields[x].from", "is not a path such as"),
        ("{to: x, from: event.colour}", "fields[x].from", "'event.colour' is none of event.reference"),
        ("{to: x}", "fields[x].from", "is missing: without it a field is only a constant in default"),
        ("{to: x, from: submitter.name}", "fields[x].from", "submitter.name is personal in the case type: say pii"),
        ("{to: x, from: category, convert: shout}", "fields[x].convert", "'shout' is not a conversion; there are:"),
        ("{to: x, from: cubicles, convert: upper}", "fields[x].convert", "upper takes text, and this is integer"),
        ("{to: x, from: category, convert: {round: 2}}", "fields[x].convert", "round takes number or integer"),
        ("{to: x, from: cubicles, convert: {round: two}}", "fields[x].convert", "round needs the number of decimals"),
        ("{to: x, from: category, convert: {upper: 1}}", "fields[x].convert", "upper takes no argument"),
        ("{to: x, from: category, convert: [[upper]]}", "fields[x].convert", "is written as a word"),
        ("{to: x, from: category, convert: {shorten: 3}}", "fields[x].convert", "shorten needs the number of char"),
        ("{to: x, from: category, convert: {prefix: 3}}", "fields[x].convert", "prefix needs a text"),
        ("{to: x, from: cubicles, convert: {scale: 0}}", "fields[x].convert", "scale needs the number to multiply"),
        (
            "{to: x, type: local_timestamp, from: event.at, convert: {local: Mars}}",
            "fields[x].convert",
            "local needs a time zone such as Europe/London",
        ),
        ("{to: x, from: cubicles}", "fields[x].type", "the column gets text, and the value is integer"),
        ("{to: x, from: category, type: integer}", "fields[x].type", "the column gets integer, and the value is text"),
        ("{to: x, from: 'tags[]'}", "fields[x].type", "the value is text[]: name a conversion"),
        ("{to: x, from: [category, cubicles]}", "fields[x].from", "several sources are either a grid's"),
        ("{to: x, from: location.easting, grid: wgs84_latitude}", "fields[x].grid", "needs from: [easting, northing]"),
        ("{to: x, from: category, grid: mercator}", "fields.0.grid", "Input should be 'wgs84_latitude'"),
        ("{to: x, from: category, date: '%d'}", "fields[x].date", "writes a date or a time, and this is text"),
        ("{to: x, from: seen_on, date: plain}", "fields[x].date", "'plain' is not a date pattern such as"),
        (
            "{to: x, from: category, required: true, default: a}",
            "fields[x].default",
            "and required exclude one another",
        ),
        ("{to: x, from: category, required: true, on_error: null}", "fields[x].on_error", "null and required exclude"),
        ("{to: x, from: category, on_error: default}", "fields[x].on_error", "is default, and there is no default"),
        ("{to: x, from: cubicles, type: integer, default: four}", "fields[x].default", "is not integer"),
        ("{to: x, from: cubicles, type: integer, default: true}", "fields[x].default", "is not integer"),
        ("{to: x, from: seen_on, type: date, default: soon}", "fields[x].default", "is not a date"),
        ("{to: x, from: cubicles, type: integer, max_chars: 3}", "fields[x].type", "only a text has a length"),
        ("{to: x, from: category, max_chars: 3, default: many}", "fields[x].default", "'many' is longer than 3 char"),
        ("{to: x, from: category, max_chars: 0}", "fields.0.max_chars", "greater than or equal to 1"),
        ("{to: our_ref, from: category}", "fields[our_ref].to", "'our_ref' is already filled by columns.key"),
        ("{to: x, from: category, table: {litter: L}}", "fields[x].table", "has no entry for 'blocked', 'other'"),
        ("{to: x, from: urgent, table: {yes: Y}}", "fields[x].table", "the key 'yes' is not boolean"),
        (
            "{to: x, from: category, table: {litter: L, blocked: 2, other: O}}",
            "fields[x].table",
            "gives values of one kind",
        ),
        ("{to: x, from: category, table: {litter: [L]}}", "fields.0.table.litter", "is not a text, a number, true"),
        (
            "{to: x, from: category, charset: ascii, table: {litter: déchet, blocked: B, other: O}}",
            "fields[x].table",
            "'déchet' holds characters outside ascii",
        ),
    ],
)
def test_a_wrong_row_is_named_by_line_and_field(field: str, where: str, message: str) -> None:
    """Each mistake a row can hold is told with its place."""
    assert any(
        found.startswith(f"street-team.yaml:{FIRST_FIELD}: {where}: ") and message in found for found in mistakes(field)
    ), mistakes(field)


def test_every_mistake_is_listed_at_once() -> None:
    """One run shows them all, in the order of the file."""
    found = mistakes("{to: a, from: asset.colour}\n{to: b, from: category, convert: shout}\n{to: b, from: category}")
    assert [line.split(": ")[1] for line in found] == ["fields[a].from", "fields[b].convert", "fields[b].to"]
    assert [line.split(":")[1] for line in found] == [str(FIRST_FIELD + row) for row in range(3)]


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (("closed: done", "closed: gone"), "status.forward.closed", "'gone' is not in codes"),
        ((", closed: done", ""), "status.forward", "has no code for our status 'closed'"),
        (("closed: done", "closed: done, lost: done"), "status.forward.lost", "'lost' is not a status of the case"),
        (
            (", no action: no_further_action", ""),
            "status.reverse",
            "does not say what the recipient's code",
        ),
        (("doing: in_progress", "doing: busy"), "status.reverse.doing", "'busy' is not a status of the case type"),
        (("{new: open,", "{new: open, late: open,"), "status.reverse.late", "'late' is not in codes"),
        (("[new, doing", "[new, new, doing"), "status.codes", "hold the same code twice"),
        (("[new, doing", "[new, 7, doing"), "status.codes", "are either all texts or all whole numbers"),
        (("done: fixed", "done: open"), "status.reverse.done", "'open' sent to the recipient comes back as another"),
    ],
)
def test_status_tables_are_total_and_settle(change: tuple[str, str], where: str, message: str) -> None:
    """Both tables cover every word of their side, and a round trip ends where it began."""
    rest = STATUS.replace(*change)
    if "comes back as another" in message:
        # `done` means open, and our open means new: so our fixed would come back as open, and stay there
        rest = rest.replace("{new: open", "{new: in_progress")
    found = mistakes("{to: x, from: category}", rest=rest)
    assert any(f" {where}: " in line and message in line for line in found), found


def test_polling_needs_something_to_read() -> None:
    """A poll without a status, or without the time of change, is refused."""
    assert "poll needs a status that the recipient owns" in mistakes("{to: x, from: category}", rest="poll: {}\n")[0]
    head = HEAD.replace(", modified: changed", "")
    with pytest.raises(InvalidDeclaration, match=r"poll needs columns\.modified"):
        RecipientDeclaration.parse(
            Path("street-team.yaml"), head + "fields: [{to: x, from: category}]\n" + STATUS + "poll: {}\n"
        )


@pytest.mark.parametrize(
    ("field", "column", "where", "message"),
    [
        ("{to: y, from: category}", Column("x", "text"), "fields[y].to", "the recipient's table has no column 'y'"),
        ("{to: x, from: category}", Column("x", "int4"), "fields[x].type", "text does not fit into the column's type"),
        (
            "{to: x, from: location.easting, type: number}",
            Column("x", "int4"),
            "fields[x].type",
            "number does not fit into the column's type int4",
        ),
        (
            "{to: x, from: category}",
            Column("x", "text", nullable=False),
            "fields[x].to",
            "'x' must not be null: say required or default",
        ),
        (
            "{to: x, from: submitter.name, pii: true, required: true}",
            Column("x", "text", nullable=False),
            "fields[x].to",
            "'x' must not be null: a personal field needs a default, sent once the person is erased",
        ),
        (
            "{to: x, from: category, default: a, on_error: null}",
            Column("x", "text", nullable=False),
            "fields[x].to",
            "on_error: null cannot be",
        ),
        (
            "{to: x, from: category, max_chars: 30}",
            Column("x", "varchar", max_chars=20),
            "fields[x].max_chars",
            "is more than the 20 characters of the column",
        ),
        (
            "{to: x, from: category, table: {litter: LITTER, blocked: B, other: O}}",
            Column("x", "bpchar", max_chars=3),
            "fields[x].table",
            "'LITTER' is longer than 3 characters",
        ),
        ("{to: x, from: category}", Column("x", "text", generated=True), "fields[x].to", "'x' is generated"),
        (
            "{to: x, from: category, table: {litter: L, blocked: B, other: O}}",
            Column("x", "kind", labels=("L", "B")),
            "fields[x].table",
            "'O' is not a value of the column's type kind",
        ),
        (
            "{to: x, type: integer, default: 40000}",
            Column("x", "int2"),
            "fields[x].default",
            "'40000' is out of the column's range",
        ),
    ],
)
def test_a_row_has_to_fit_the_recipients_column(field: str, column: Column, where: str, message: str) -> None:
    """Types, lengths, nulls and code lists of the real table are checked before anything is sent to it."""
    found = mistakes(field, {"x": column})
    assert any(f":{FIRST_FIELD}: {where}: " in line and message in line for line in found), found


def test_what_nothing_fills_is_found() -> None:
    """A column that must not be null, and has no default, needs a row of the field table."""
    found = mistakes(
        "{to: x, from: category}", {"x": Column("x", "text"), "team": Column("team", "text", nullable=False)}
    )
    assert found == [
        f"street-team.yaml:{FIRST_FIELD - 1}: fields: nothing fills the column 'team', which must not be null"
    ]


@pytest.mark.parametrize(
    ("column", "where", "message"),
    [
        (Column("our_ref", "varchar", max_chars=8), "columns.key", "holds 8 characters and a reference has 13"),
        (Column("our_ref", "int8"), "columns.key", "'our_ref' is int8 and has to take a text"),
        (Column("our_version", "text"), "columns.version", "'our_version' is text and has to take a integer"),
        (Column("changed", "date"), "columns.modified", "'changed' is date and has to take a timestamp"),
        (Column("state", "varchar", max_chars=5), "status.codes", "'no action' is longer than the 5 characters"),
        (Column("state", "int2"), "status.column", "'state' is int2 and the codes are text"),
        (Column("state", "job_state", labels=("new",)), "status.codes", "'doing' is not a value of the column's type"),
    ],
)
def test_the_columns_silogate_uses_have_to_fit(column: Column, where: str, message: str) -> None:
    """Reference, version, time of change and status are checked like the mapped columns."""
    columns = {"x": Column("x", "text"), "state": Column("state", "text"), column.name: column}
    found = mistakes("{to: x, from: category}", columns, STATUS)
    assert any(f" {where}: " in line and message in line for line in found), found


def test_missing_columns_are_named() -> None:
    """A renamed column at the recipient is told by the role it has here."""
    declaration = declared("{to: x, from: category}", STATUS)
    columns = {"x": Column("x", "text"), **{name: column for name, column in USED.items() if name != "our_version"}}
    with pytest.raises(InvalidDeclaration) as caught:
        Mapping.compile(declaration, CASE_TYPE, columns)
    assert [problem.field for problem in caught.value.problems] == ["columns.version", "status.column"]


def test_the_digest_names_the_meaning() -> None:
    """Two files that say the same have one digest; any change of what is sent gives another."""
    plain = compiled("{to: x, from: category}")
    assert plain.digest == compiled("{from: category, to: x}  # the same").digest
    assert plain.digest != compiled("{to: x, from: category, convert: upper}").digest
    assert plain.digest != compiled("{to: x, from: category}", rest=STATUS).digest
