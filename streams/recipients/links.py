"""Which case is which row at a recipient: the table xref of the gateway's database.

It is written after the recipient has committed. A process that dies in between leaves it behind by one batch, and the
redelivery of that batch, which changes nothing at the recipient, brings it up to date.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

# The recipient's own word for the status starts as what we wrote with the new row, and is the poller's from then on.
# A version never goes back, so a late or repeated batch cannot undo what a newer one recorded.
_RECORD = """
insert into xref as held (recipient, case_id, remote_id, version, state, mapping, pushed_at, remote_status)
select $1, link.case_id, link.remote_id, link.version, link.state, $2, now(), link.remote_status
from unnest($3::uuid[], $4::text[], $5::int8[], $6::text[], $7::text[])
     as link(case_id, remote_id, version, state, remote_status)
order by link.case_id
on conflict (recipient, case_id) do update set
    remote_id = coalesce(excluded.remote_id, held.remote_id),
    version = excluded.version,
    state = excluded.state,
    mapping = excluded.mapping,
    pushed_at = excluded.pushed_at,
    remote_status = coalesce(held.remote_status, excluded.remote_status)
where held.version < excluded.version
   or (held.version = excluded.version
       and (held.state <> excluded.state or (held.remote_id is null and excluded.remote_id is not null)))
"""


@dataclass(frozen=True, slots=True)
class Link:
    """One case at one recipient. `remote_status`: the code a new row of it got."""

    case_id: UUID
    remote_id: str | None
    version: int
    state: str
    remote_status: str | None = None


async def record(pool: asyncpg.Pool, recipient: str, mapping: str, links: Sequence[Link], *, timeout_s: float) -> None:
    """Records where the cases are now."""
    if not links:
        return
    await pool.execute(
        _RECORD,
        recipient,
        mapping,
        [link.case_id for link in links],
        [link.remote_id for link in links],
        [link.version for link in links],
        [link.state for link in links],
        [link.remote_status for link in links],
        timeout=timeout_s,
    )
