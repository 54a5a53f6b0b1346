"""One parked case on the operator's pages: why, at which field, after how many attempts, and what waits behind it."""

from __future__ import annotations

from html import unescape

import pytest

from tests.integration import operator_rows as rows
from tests.integration.operator_pages import Operator, busy, operator, pool

__all__ = ["busy", "operator", "pool"]

CASE = f"/admin/parked/case?group=recipient.contractor&id={rows.BLOCKED}"


async def test_the_list_leads_to_the_case(busy: Operator) -> None:
    """The consumer's name is a link to the details."""
    assert CASE in unescape(await busy.read("/admin/parked"))


async def test_a_case_says_why_it_is_parked_and_what_to_do(busy: Operator) -> None:
    """Reason, stage, field, attempts, each waiting event with its record, and the commands, ready to paste."""
    await busy.context.pool.execute(
        "insert into parked_event (consumer_group, case_id, version, topic, partition, record_offset, record_sha256,"
        " headers, value, event_type) values ('recipient.contractor', $1, 2, 'cases.changes.v1', 0, 9, 'x', '{}', $2,"
        " 'case.noted')",
        rows.BLOCKED,
        rows.SEALED,
    )
    first = await busy.context.pool.fetchval("select min(position) from parked_event")
    text = " ".join(unescape(await busy.read(CASE)).split())
    assert "RAP-0000-BLCK at recipient.contractor" in text
    for fact in ("too_long", "JobTitle", "mapping", '<dd class="mono">8</dd>', "case.noted", "cases.changes.v1/0/9"):
        assert fact in text
    assert f"silogate dlq replay recipient.contractor --case {rows.BLOCKED} --go" in text
    assert f"silogate dlq drop recipient.contractor --event {first} --reason" in text
    assert "sealed" not in text
    assert "Alex" not in text


async def test_what_was_given_up_stays_visible(busy: Operator) -> None:
    """By whom and why, also when nothing of the case waits any more."""
    pool = busy.context.pool
    await pool.execute(
        "insert into dropped_event (position, consumer_group, case_id, version, topic, partition, record_offset,"
        " record_sha256, headers, value, parked_at, actor, reason) select position, consumer_group, case_id, version,"
        " topic, partition, record_offset, record_sha256, headers, value, parked_at, 'os:sam', 'a test report'"
        " from parked_event"
    )
    await pool.execute("delete from parked_key")
    text = await busy.read(CASE)
    assert "No such case is parked" in text
    assert "os:sam" in text
    assert "a test report" in text


@pytest.mark.parametrize(
    "query", ["", "?group=x&id=7", f"?group=x&id={rows.BLOCKED}", f"?group=%00&id={rows.BLOCKED}", "?id=%ED%A0%80"]
)
async def test_what_is_not_parked_is_not_found(busy: Operator, query: str) -> None:
    """Whatever the address says, the page answers."""
    assert "No such case is parked" in await busy.read("/admin/parked/case" + query, status=404)


async def test_strangers_see_none_of_it(operator: Operator) -> None:
    """It is as closed as every other page."""
    async with operator.http.get(operator.url + CASE, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/admin/login")
