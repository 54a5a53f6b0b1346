"""What waits in Postgres: the record itself is what is kept once, wherever it lay in its topic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from gateway.dev.addresses import Database
from streams.consumer.fence import Fence, bump
from streams.consumer.lanes import Item, Verdict
from streams.consumer.parking import Parked, Parking
from streams.errors import Undecodable
from streams.events import CaseEvent, encode
from streams.testing import case_event

GROUP = "recipient.street-team"
TOPIC = "cases.changes.v1"
NO_STREET = Verdict("mapping", "street", "is no street of ours")
CASE = UUID("5b0c1a7e-3f52-4a56-9a54-0a3b4c5d6e7f")


@dataclass(frozen=True, slots=True)
class Lot:
    """The parking of one group, whose partition is ours."""

    pool: asyncpg.Pool
    parking: Parking
    held: Fence

    async def versions(self) -> list[int]:
        rows = await self.pool.fetch("select version from parked_event order by position")
        return [row["version"] for row in rows]


@pytest_asyncio.fixture
async def lot(gateway_database: Database) -> AsyncIterator[Lot]:
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=4, server_settings={"search_path": "gateway"}
    ) as pool:
        held = await bump(pool, GROUP, TOPIC, [0], timeout_s=10)
        yield Lot(pool, Parking(pool, GROUP, TOPIC), held)


def record(offset: int, event: CaseEvent) -> Item:
    key, value, headers = encode(event)
    return Item(0, offset, key, headers, value, len(value), event)


def stray(offset: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> Item:
    return Item(0, offset, key, headers, value, 0, None, Undecodable("envelope", "key", "is not a case's id"))


async def test_a_topic_made_anew_loses_no_parked_event(lot: Lot) -> None:
    """Its offsets begin at 0 again: other events at the same offsets are kept, and the same ones only once."""
    before = [record(offset, case_event(offset + 1, case_id=CASE)) for offset in range(2)]
    for _ in range(2):
        await lot.parking.park_many([Parked(CASE, before, NO_STREET, 1)], lot.held)
    assert await lot.versions() == [1, 2]
    after = [record(offset, case_event(offset + 3, case_id=CASE)) for offset in range(2)]
    for _ in range(2):
        assert await lot.parking.append_many({CASE: after}, lot.held) == set()
    assert await lot.versions() == [1, 2, 3, 4]


async def test_another_cases_event_at_the_same_offset_is_parked(lot: Lot) -> None:
    """The events of two cases meet at one offset of a topic made anew: both cases have theirs."""
    other = uuid4()
    both = [Parked(each, [record(0, case_event(case_id=each))], NO_STREET, 1) for each in (CASE, other)]
    await lot.parking.park_many(both, lot.held)
    for case_id in (CASE, other):
        head = await lot.parking.head(case_id)
        assert head is not None
        assert head.event is not None
        assert head.event.case_id == case_id


@pytest.mark.parametrize(
    "other",
    [
        stray(7, b"case 43", b"{}"),
        stray(7, b"case 4", b"2{}"),
        stray(7, None, b"{}"),
        stray(7, b"case 42", None),
        stray(7, b"case 42", b""),
        stray(7, b"case 42", b"{}", [("ce_id", b"1")]),
    ],
)
async def test_another_stray_record_at_the_same_offset_is_kept(lot: Lot, other: Item) -> None:
    """Key, value or headers differ, were it only by being absent: both are kept, each once."""
    first = stray(7, b"case 42", b"{}")
    for item in (first, other, first, replace(other)):
        await lot.parking.keep_stray(item, NO_STREET, lot.held)
    rows = await lot.pool.fetch("select key, value from stray_record where record_offset = 7")
    assert {(row["key"], row["value"]) for row in rows} == {(first.key, first.value), (other.key, other.value)}
    assert len(rows) == 2
