"""P7: every side does the whole work, and a side whose rows are wrong has no number."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from rich.console import Console

from gateway.dev.stack import Stack
from tests.load import bench_streams, machine
from tests.load.bench import Bench
from tests.load.sides import Unfit
from tests.load.streams_data import Work, prepare

pytestmark = pytest.mark.skipif(not machine.CAN_MEASURE, reason="it reads another process's clock, which needs Linux")


@pytest_asyncio.fixture
async def work(stack: Stack) -> AsyncIterator[Work]:
    made = await prepare(stack.servers, 200)
    yield made
    await made.drop(stack.servers)


@pytest.fixture
def bench(stack: Stack, tmp_path: Path) -> Bench:
    council: Any = SimpleNamespace(root=tmp_path)
    return Bench(council, stack, machine.Cores(), rounds=1, is_quick=True, console=Console(quiet=True))


@pytest.mark.parametrize("name", ["ours", "raw", "faststream_batch", "faststream_ack"])
async def test_a_side_writes_what_the_events_say(bench: Bench, work: Work, name: str) -> None:
    """Two hundred events of forty cases: every case's last version is in the recipient's table, and it was measured."""
    if name.startswith("faststream"):
        pytest.importorskip("faststream")
    run = await bench_streams.measured(bench, name, work)
    assert run.events == 200
    assert run.cpu_s > 0
    assert run.grown_mb > 0
    assert bench.compared > 0


@pytest.mark.parametrize(
    "fault",
    [
        "update job set summary = 'another' where ref = 'RAP-00000003'",
        "update job set easting = easting + 1 where ref = 'RAP-00000003'",
        "delete from job where ref = 'RAP-00000003'; insert into job (ref, rev) values ('RAP-00000099', 5)",
        "insert into job (ref, rev) values ('RAP-00000099', 5)",
        "truncate job",
    ],
)
async def test_a_wrong_row_is_seen(work: Work, fault: str) -> None:
    """The table that is right has no wrong rows; a wrong, a missing and an extra one are."""
    session = await asyncpg.connect(work.recipient)
    try:
        columns = await session.fetchval(
            "select string_agg(column_name, ', ') from information_schema.columns where table_name = 'expected'"
        )
        await session.execute(f"insert into job ({columns}) select {columns} from expected")
        assert await work.wrong_rows(session) == 0
        await session.execute(fault)
        assert await work.wrong_rows(session) > 0
    finally:
        await session.close()


async def test_a_side_that_does_nothing_has_no_number(
    bench: Bench, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side that never comes to the end is refused, and so is one that ends by itself."""
    monkeypatch.setattr(bench_streams, "OURS", "tests.load.streams_start")
    with pytest.raises(Unfit, match="ours"):
        await bench_streams.measured(bench, "ours", work)
