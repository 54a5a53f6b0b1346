"""The answers of one batch, as they come: in one row, however many questions there were.

Postgres sends what it has in pieces of 8 kB, a row or two each, and the event loop wakes for every piece; a value that
is larger than that goes in one. And what all answers have in common, the position above all, is sent and read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ORDS, BODIES, COUNTS = "ords", "bodies", "counts"


def gathered_sql(answers: str) -> str:
    """One row out of a query of `ord`, `body` (text) and `n`, with the position that all of them were read at.

    Without an `order by`: to sort the answers would cost more than to put them in their places.
    """
    # only SQL that was compiled goes in: values are parameters of it
    return f"""select sg_gathered.*,
    sg_progress.epoch, sg_progress.seq, sg_progress.id, sg_progress.definition, sg_progress.applied_at,
    statement_timestamp() as now
from (
    select array_agg(sg_each.ord) as {ORDS}, array_agg(convert_to(sg_each.body, 'UTF8')) as {BODIES},
        array_agg(sg_each.n) as {COUNTS}
    from (\n{answers}\n) as sg_each
) as sg_gathered
cross join progress as sg_progress"""  # noqa: S608


def spread(row: Mapping[str, Any]) -> Sequence[tuple[bytes, int]]:
    """Body and number of rows for each question, in the order in which they were asked."""
    ords, found = row[ORDS], list(zip(row[BODIES], row[COUNTS], strict=True))
    if ords != sorted(ords):
        found = [answer for _, answer in sorted(zip(ords, found, strict=True))]
    return found
