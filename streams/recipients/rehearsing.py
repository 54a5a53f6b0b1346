"""What events would change at a recipient: mapped and compared with what is there, written nowhere.

What only the recipient's own rules can refuse is not found here: that takes a write.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

import asyncpg

from streams.consumer.replay import Change, Rehearsal
from streams.errors import Rejected
from streams.events import CaseEvent
from streams.mapping.declaration import Kind
from streams.recipients.candidates import Candidate, MapEvent, columns_of
from streams.recipients.database import Ready


async def rehearsed(
    connection: asyncpg.Connection, ready: Ready, events: Sequence[CaseEvent], map_event: MapEvent
) -> dict[UUID, Rehearsal]:
    """By event id. Each event of a case is compared with what the one before it would leave."""
    found: dict[UUID, Rehearsal] = {}
    mapped: list[Candidate] = []
    for event in events:
        try:
            mapped.append(Candidate(event, map_event(event), []))
        except Rejected as error:
            found[event.event_id] = Rehearsal("refused", error.field, error.reason)
    if not mapped:
        return found
    statements = ready.statements
    rows = await connection.fetch(statements.compare, *columns_of(mapped, statements.columns))
    after: dict[UUID, _Row] = {}
    for candidate, row in zip(mapped, rows, strict=True):
        event = candidate.event
        there = after.get(event.case_id) or _Row.there(row, statements.columns)
        if there.version is not None and there.version >= event.version:
            found[event.event_id] = Rehearsal("changes nothing")
            continue
        would = _Row.after(there, row, event.version, statements.columns, ready.mapping.remote_columns)
        after[event.case_id] = would
        found[event.event_id] = Rehearsal("writes", changes=_changes(ready, there, would))
    return found


class _Row:
    """A row of the recipient as texts; without a version there is none."""

    def __init__(self, version: int | None, values: Mapping[str, str | None]) -> None:
        self.version = version
        self.values = values

    @classmethod
    def there(cls, row: asyncpg.Record, columns: Sequence[str]) -> "_Row":
        return cls(row["version"], {column: row[f"there{n}"] for n, column in enumerate(columns, 2)})

    @classmethod
    def after(
        cls, there: "_Row", row: asyncpg.Record, version: int, columns: Sequence[str], remote: frozenset[str]
    ) -> "_Row":
        """What the recipient owns is written with a new row only."""
        values = {
            column: there.values[column] if there.version is not None and column in remote else row[f"would{n}"]
            for n, column in enumerate(columns, 2)
        }
        return cls(version, values)


def _changes(ready: Ready, there: _Row, would: _Row) -> tuple[Change, ...]:
    personal = {field.to for field in ready.mapping.declaration.fields if field.pii}
    return tuple(
        Change(column, None, None, is_personal=True)
        if column in personal
        else Change(column, there.values[column], value, is_personal=False)
        for column, value in would.values.items()
        if not _is_same(ready.mapping.kinds[column], there.values[column], value)
    )


def _is_same(kind: Kind, there: str | None, would_be: str | None) -> bool:
    """Whether two texts of a column mean one value: a number(9,2) is written 518225.00."""
    if kind in {"number", "integer"} and there is not None and would_be is not None:
        return Decimal(there) == Decimal(would_be)
    return there == would_be
