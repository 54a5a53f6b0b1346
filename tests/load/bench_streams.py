"""P7: events from a topic through a mapping into a recipient's table, ours against what people write by hand.

Every side is a process of its own on the server's core and reads the same events, which lie in the topic before it
starts; it opens the personal part of each, maps fourteen fields and writes them where the version is newer. The clock
runs from its start to the last row; what it imported by then is not counted. Ours also holds the fence, records where
each case is, and keeps its metrics: no other side does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from gateway.dev.process import tail
from gateway.dev.stack import PROJECT
from tests.load.bench import Bench
from tests.load.comparison import Comparison, Measured, Row
from tests.load.machine import used_s
from tests.load.sides import Unfit
from tests.load.streams_data import Work, prepare
from tests.load.streams_start import READY

OURS = "tests.load.streams_side"
_EVENTS, _EVENTS_ONE_BY_ONE = 100_000, 3_000
_QUICK, _QUICK_ONE_BY_ONE = 5_000, 300
_PEERS = {"raw": "raw_aiokafka", "faststream_batch": "faststream_batch", "faststream_ack": "faststream_ack"}
_BARS = {"raw": (0.7, 1.0), "faststream_batch": (1.0, 1.5), "faststream_ack": (15.0, 40.0)}
_LOOK_S = 0.05
_LONGEST_S = 300.0


@dataclass(frozen=True)
class Run:
    """One side once: `grown_mb` is the most memory it ever had over what it had after its imports."""

    events: int
    seconds: float
    cpu_s: float
    grown_mb: float

    @property
    def a_cpu_second(self) -> float:
        return self.events / self.cpu_s


async def applying(bench: Bench) -> list[Row]:
    """P7 `raw`, `faststream_batch`, `faststream_ack` and `rss_mb`."""
    many, few = (_QUICK, _QUICK_ONE_BY_ONE) if bench.is_quick else (_EVENTS, _EVENTS_ONE_BY_ONE)
    is_there = find_spec("faststream") is not None
    sides = ["ours", *(name for name in _PEERS if is_there or not name.startswith("faststream"))]
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    with bench.measuring("P7", steps=2 + (bench.rounds + 1) * len(sides)):
        work = await bench.step("events into the topic", prepare(bench.stack.servers, many))
        one_by_one = await bench.step("events into the topic", prepare(bench.stack.servers, few))
        try:
            for n in range(bench.rounds + 1):
                for name in sides:
                    mine = one_by_one if name == "faststream_ack" else work
                    run = await bench.step(f"{name}, round {n}", measured(bench, name, mine))
                    if n:  # the first is the warm-up
                        runs[name].append(run)
        finally:
            for made in (work, one_by_one):
                await made.drop(bench.stack.servers)
    for name in sides:
        bench.note("P7", f"{name}: {_told(runs[name])}")
    return _rows(runs)


def _rows(runs: dict[str, list[Run]]) -> list[Row]:
    rows: list[Row] = []
    for name, (must, aim) in _BARS.items():
        if name not in runs:
            continue  # a peer that is not installed has no row
        both = zip(runs["ours"], runs[name], strict=True)
        pairs = [(ours.a_cpu_second, theirs.a_cpu_second) for ours, theirs in both]
        rows.append(Comparison("P7", name, "higher", must, aim, "events a CPU second", pairs))
    grown = [run.grown_mb for run in runs["ours"]]
    rows.append(Measured("P7", "rss_mb", 60.0, 60.0, grown, f"{max(grown):.0f} MB over the imports"))
    return rows


def _told(runs: Sequence[Run]) -> str:
    rate = statistics.median(run.events / run.seconds for run in runs)
    cost = statistics.median(run.cpu_s / run.events * 1e6 for run in runs)
    return f"{rate:,.0f} events/s, {cost:.1f} us of CPU an event, {runs[0].events:,} events"


async def measured(bench: Bench, name: str, work: Work) -> Run:
    """One side once, from an empty table; raises Unfit when its rows are not what the events say."""
    session = await asyncpg.connect(work.recipient)
    gateway = await asyncpg.connect(work.gateway)
    try:
        await session.execute("truncate job restart identity")
        await gateway.execute("truncate gateway.xref")
        run = await _timed(bench, name, work, session)
        # Ours goes on to commit; whatever a side has written by now must be what the events say.
        if wrong := await work.wrong_rows(session):
            raise Unfit(f"{name}: {wrong} rows are not what the last event of their case says")
        bench.compared += work.versions
        return run
    finally:
        await session.close()
        await gateway.close()


async def _timed(bench: Bench, name: str, work: Work, session: asyncpg.Connection) -> Run:
    module = [OURS if name == "ours" else f"tests.load.peers.{_PEERS[name]}"]
    if (profile := bench.profile_of(name)) is not None:
        module = ["tests.load.sampler", str(profile), *module]
    log = bench.council.root / f"{name}.log"
    environment = {"PYTHONPATH": _path(), **work.environment(f"bench.{name}.{secrets.token_hex(4)}")}
    with log.open("ab") as errors, bench.cores.of_the_server():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=PROJECT,
        )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        if (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip() != READY:
            raise Unfit(f"{name} did not start. The end of {log}:\n{tail(log)}")
        imports_mb, used = _memory_mb(process.pid, "VmRSS"), used_s([process.pid])
        begun = time.perf_counter()
        process.stdin.write(b"go\n")
        await _until_all_there(name, work, session, process, log)
        seconds = time.perf_counter() - begun
        cpu_s = used_s([process.pid]) - used
        return Run(work.events, seconds, cpu_s, _memory_mb(process.pid, "VmHWM") - imports_mb)
    finally:
        await _stop(process)


async def _until_all_there(
    name: str, work: Work, session: asyncpg.Connection, process: asyncio.subprocess.Process, log: Path
) -> None:
    deadline = time.monotonic() + _LONGEST_S
    while await session.fetchval("select coalesce(sum(rev), 0) from job") < work.versions:
        if process.returncode is not None or time.monotonic() > deadline:
            raise Unfit(f"{name} did not come to the end. The end of {log}:\n{tail(log)}")
        await asyncio.sleep(_LOOK_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 30)
    except TimeoutError:
        process.kill()
        await process.wait()


def _path() -> str:
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))


def _memory_mb(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
