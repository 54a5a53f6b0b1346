"""Which event of a case is pushed out of a batch, and what an error of the recipient's database means."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import Misconfigured, Rejected, Retryable, Unavailable
from streams.events import CaseEvent
from streams.mapping.columns import Column
from streams.recipients.candidates import choose, columns_of
from streams.recipients.refusals import of_connector, of_row
from streams.recipients.tables import RemoteTable, Statements, quoted, quoted_table
from streams.testing import case_event
from tests.unit.mapping_case import USED, compiled

# a busy machine is no fault of the code
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ORIGIN = "recipient:street-team"

batches = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans(), st.booleans()),
    max_size=25,
    unique_by=lambda e: e[:2],
)


def mapped(event: CaseEvent) -> dict[str, object]:
    if event.document["bad"]:
        raise Rejected("is longer than 5 characters", "site")
    return {"site": event.version}


@UNHURRIED
@given(batches)
def test_the_newest_sound_event_of_each_case_is_chosen(batch: list[tuple[int, int, bool, bool]]) -> None:
    """Every event is written, an echo, contained in the written one, or named; and only bad ones are named."""
    events = [
        case_event(version, case_id=UUID(int=case), document={"bad": bad}, origin=ORIGIN if echo else "officer")
        for case, version, bad, echo in batch
    ]
    choice = choose(events, ORIGIN, mapped)
    for case in {event.case_id for event in events}:
        of_case = [event for event in events if event.case_id == case]
        chosen = [one.event for one in choice.candidates if one.event.case_id == case]
        echoes = [event for event in choice.echoes if event.case_id == case]
        named = [event for event in of_case if event.event_id in choice.errors]
        if all(event.origin == ORIGIN for event in of_case):
            assert echoes == [max(of_case, key=lambda event: event.version)]
            assert not chosen
            assert not named
            continue
        assert not echoes
        sound = [event.version for event in of_case if not event.document["bad"]]
        assert [event.version for event in chosen] == ([max(sound)] if sound else [])
        newest = max(sound, default=0)
        assert {event.version for event in named} == {event.version for event in of_case if event.version > newest}
    assert all(isinstance(error, Rejected) and error.case_id for error in choice.errors.values())


def test_rows_become_columns() -> None:
    """The push takes references, versions and then one list a column, all in the order of the rows."""
    choice = choose([case_event(2, document={"bad": False})], ORIGIN, mapped)
    assert columns_of(choice.candidates, ["site"]) == [["RAP-7KQ2-93XD"], [2], [2]]


def database_error(state: str, **fields: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": state, "M": "Ada Whitfield lives here", "D": "Ada Whitfield", **fields})


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (database_error("22001"), Rejected, "is too long for the recipient's column (22001)"),
        (database_error("23502", c="site"), Rejected, "site: must not be null at the recipient (23502)"),
        (
            database_error("23503", n="job_type_fkey"),
            Rejected,
            "job_type_fkey: names something the recipient does not have (23503, constraint job_type_fkey)",
        ),
        (database_error("22012"), Rejected, "was refused by the recipient's database (22012)"),
        (database_error("P0001"), Rejected, "was refused by the recipient's own rules (P0001)"),
        (database_error("55P03"), Retryable, "another session at the recipient holds the row"),
        (database_error("57014"), Retryable, "the recipient's database did not finish the row in time"),
        (TimeoutError(), Retryable, "the recipient's database did not finish the row in time"),
        *(
            (database_error(state), Retryable, f"the recipient's database failed at the row ({state})")
            for state in ("UE001", "45000", "27000", "38001", "39P01", "XX000", "25001")
        ),
    ],
)
def test_a_rows_fault_is_told_without_the_row(error: Exception, kind: type[Exception], text: str) -> None:
    """SQLSTATE and names of columns and constraints, never the message: it may quote a resident."""
    fault = of_row(error)
    assert type(fault) is kind
    assert str(fault) == text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (database_error("40001"), Unavailable),
        (database_error("57P01"), Unavailable),
        (database_error("08006"), Unavailable),
        (database_error("58030"), Unavailable),
        (database_error("25006"), Unavailable),
        (database_error("25P03"), Unavailable),
        (database_error("55000"), Unavailable),
        (database_error("3D000"), Misconfigured),
        (database_error("3F000"), Misconfigured),
        (database_error("0A000"), Misconfigured),
        (database_error("53300"), Unavailable),
        (database_error("42P01"), Misconfigured),
        (database_error("42501"), Misconfigured),
        (database_error("28P01"), Misconfigured),
        (asyncpg.InvalidCachedStatementError("the plan is old"), Unavailable),
        (ConnectionResetError(), Unavailable),
        (asyncpg.InternalClientError("cannot switch to state 15"), Unavailable),
        (asyncpg.InterfaceError("connection is closed"), Unavailable),
        (ValueError("invalid DSN: postgres://user:secret@host"), Misconfigured),
    ],
)
def test_everything_else_is_the_recipients_state(error: Exception, kind: type[Exception]) -> None:
    """Away for now, or declared wrongly; the text names neither the address nor a value."""
    assert of_row(error) is None
    told = of_connector(error)
    assert type(told) is kind
    assert "secret" not in str(told)
    assert "Ada" not in str(told)


def test_a_time_out_outside_a_statement_over_rows_is_the_recipients() -> None:
    """Nothing was asked about a row: the recipient is away for now."""
    assert str(of_connector(TimeoutError())) == "the recipient's database did not answer in time"
    assert type(of_connector(TimeoutError())) is Unavailable


def test_identifiers_are_quoted_as_written() -> None:
    """Capitals, spaces and hostile characters of a column's name reach SQL only inside quotes."""
    assert quoted('Job "No"') == '"Job ""No"""'
    assert quoted_table("street.job") == '"street"."job"'
    mapping = compiled("{to: 'Site; drop table x', from: asset.name}")
    column = Column("Site; drop table x", "text")
    table = RemoteTable({**USED, column.name: column}, {})
    push = Statements.of(mapping, table).push
    assert push.count('"Site; drop table x"') == push.count("Site; drop table x") == 3


def test_an_enum_and_a_uuid_are_reached_by_their_type() -> None:
    """A text is assigned to an enum or a uuid only when its type is named, and no other column is cast (or cut)."""
    mapping = compiled("{to: state, from: category}\n{to: site, from: asset.name}")
    columns = {
        **USED,
        "state": Column("state", "job_state", labels=("litter", "blocked", "other")),
        "site": Column("site", "varchar", max_chars=30),
    }
    table = RemoteTable(columns, {"state": "street.job_state"})
    push = Statements.of(mapping.fitted(columns), table).push
    assert "c2::street.job_state" in push
    assert "varchar" not in push
