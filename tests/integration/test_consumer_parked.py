"""Parked cases: they wait in order with all that follows, and come back in order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

import streams.events
from streams.consumer.replay import parked_cases, resume
from streams.errors import Rejected, Retryable
from streams.events import CaseEvent, encode
from streams.testing import case_event
from tests.integration.consumer_bench import (
    Bench,
    Recorder,
    history,
    open_bench,
    until,
)


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


@pytest.mark.parametrize("refusal", [Rejected("no such street", "usrn"), Retryable("locked"), KeyError("Avery Quill")])
async def test_a_case_that_cannot_be_applied_is_parked_with_all_that_follows(bench: Bench, refusal: Exception) -> None:
    """Refused, out of attempts or a fault in the handler: the case waits in order, the offsets are committed."""
    events = history(cases=5, versions=3)
    sick = events[0].case_id

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise refusal

    handler = Recorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 12 and bench.counted("parked") + bench.counted("appended") == 3)
        await bench.write(case_event(4, case_id=sick), case_event(5, case_id=sick))
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 5)
    assert await bench.committed() == 17
    parked = await parked_cases(bench.pool, bench.group)
    assert [(case.case_id, case.events, case.stage) for case in parked] == [(sick, 5, "handler")]
    assert parked[0].attempts == (1 if isinstance(refusal, Rejected) else 3)
    assert parked[0].field == ("usrn" if isinstance(refusal, Rejected) else None)
    assert "Quill" not in parked[0].reason
    order = await bench.pool.fetch("select version from parked_event order by position")
    assert [row["version"] for row in order] == [1, 2, 3, 4, 5]


async def test_a_parked_case_stays_parked_after_a_restart(bench: Bench) -> None:
    """The next process knows what is parked and appends to it without asking the handler."""
    sick = uuid4()
    handler = Recorder(_reject)
    await bench.write(case_event(1, case_id=sick))
    async with bench.consuming(handler):
        await until(lambda: bench.counted("parked") == 1)
    await bench.write(case_event(2, case_id=sick))
    cured = Recorder()
    async with bench.consuming(cured):
        await until(lambda: bench.counted("appended") == 1)
    assert cured.applied == []


def _reject(_: CaseEvent) -> None:
    raise Rejected("no such street")


async def test_a_parked_case_is_resumed_in_order(bench: Bench) -> None:
    """On request its events are handled, oldest first, while new ones keep coming; then it is a case like any other."""
    sick = uuid4()
    is_well = False

    async def behave(event: CaseEvent) -> None:
        await asyncio.sleep(0.005)
        if not is_well:
            raise Rejected("no such street")

    handler = Recorder(behave)
    async with bench.consuming(handler):
        await bench.write(*(case_event(version, case_id=sick) for version in range(1, 21)))
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 20)
        assert await resume(bench.pool, bench.group, [sick]) == 1
        await _until_refused_again(bench)
        assert handler.applied == []
        is_well = True
        assert await resume(bench.pool, bench.group) == 1
        for version in range(21, 61):
            await bench.write(case_event(version, case_id=sick))
            await asyncio.sleep(0.004)
        async with asyncio.timeout(30):
            while len(handler.applied) < 60 or await parked_cases(bench.pool):
                await asyncio.sleep(0.02)
    assert handler.versions(sick) == list(range(1, 61))
    assert await bench.pool.fetchval("select count(*) from parked_event") == 0
    assert await bench.committed() == 60


async def _until_refused_again(bench: Bench) -> None:
    async with asyncio.timeout(20):
        while (await parked_cases(bench.pool))[0].resuming:
            await asyncio.sleep(0.02)
    assert (await parked_cases(bench.pool))[0].attempts == 2


async def test_records_nobody_can_read_are_kept(bench: Bench) -> None:
    """One under a case's key is parked with its case; one without a case is kept with its reason; the rest flows."""
    case_id = uuid4()
    key, value, headers = encode(case_event(2, case_id=case_id))
    await bench.write(case_event(1, case_id=case_id))
    await bench.write_raw(key, b'{"case_id":', headers)
    await bench.write(case_event(3, case_id=case_id))
    await bench.write_raw(None, b"\x00\xff", [("ce_type", b"\xff\x00")])
    await bench.write_raw(b"case 42", value, headers)
    other = case_event()
    await bench.write(other)
    handler = Recorder()
    async with bench.consuming(handler):
        await until(
            lambda: bench.counted("undecodable") + bench.counted("appended") == 2 and bench.counted("stray") == 2
        )
        await until(lambda: len(handler.applied) == 2)
    assert {event.case_id for event in handler.applied} == {case_id, other.case_id}
    (parked,) = await parked_cases(bench.pool)
    assert (parked.case_id, parked.events, parked.stage) == (case_id, 2, "data")
    strays = await bench.pool.fetch("select key, value, stage, reason from stray_record order by key nulls first")
    assert [(row["key"], row["value"]) for row in strays] == [(None, b"\x00\xff"), (b"case 42", value)]
    assert all(row["reason"] for row in strays)
    assert await bench.committed() == 6


async def test_a_record_that_breaks_the_decoder_is_parked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error nobody thought of parks the record's case, naming only its class; the worker goes on with the rest."""
    odd, other = case_event(), case_event()
    decode = streams.events.decode

    def fragile(key: bytes | None, *rest: Any) -> CaseEvent:
        if key == str(odd.case_id).encode():
            raise RuntimeError("Avery Quill")
        return decode(key, *rest)

    monkeypatch.setattr(streams.events, "decode", fragile)
    await bench.write(odd, other)
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: bench.counted("undecodable") == 1 and len(handler.applied) == 1)
        assert await resume(bench.pool, bench.group) == 1
        await _until_refused_again(bench)
    (parked,) = await parked_cases(bench.pool)
    assert (parked.case_id, parked.reason) == (odd.case_id, "cannot be read (RuntimeError)")


async def test_parking_waits_for_the_gateways_database(bench: Bench) -> None:
    """While parking is impossible the event is neither lost nor acknowledged, and healthy cases flow."""
    sick = uuid4()

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise Rejected("no such street")

    handler = Recorder(behave)
    await bench.pool.execute("alter table parked_event rename to away")
    await bench.write(case_event(1, case_id=sick), *history(10, 1))
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 10)
        assert await bench.committed() < 11
        await bench.pool.execute("alter table away rename to parked_event")
        await until(lambda: bench.counted("parked") == 1)
    assert await bench.committed() == 11
