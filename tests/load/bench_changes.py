"""P5: a silo that changes all the time, and a load in the middle, under questions that come when they come."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from streams.silos.applier import TAGS_A_LOAD, advance, read_position
from tests.load.bench import Bench
from tests.load.bench_lookups import fill, started
from tests.load.comparison import Measured, Row
from tests.load.council import ROWS_A_POSTCODE, address, postcode, rows_of
from tests.load.sides import Side, Unfit, generate

_RATE = 1_000
_CHANGES = 200
_LOADED_ROWS = 20_000
_DEADLINE_S = 2.0
_SCRIPT_FLOOR_US, _LONG_US = 100, 3_000
_UPDATE = "update address set address = $3 where postcode = $1 and uprn = $2"
# Every row of these postcodes is another one afterwards, as after a real load that found them all changed.
_LOAD = """
update address a set address = n.address, northing = northing + 1
from unnest($1::text[], $2::text[]) n (postcode, address) where a.postcode = n.postcode
"""


@dataclass
class Town:
    """What every postcode has shown since which position: `seqs[n]` and `versions[n]` grow side by side."""

    connection: asyncpg.Connection
    postcodes: int
    chance: random.Random
    seqs: dict[int, list[int]] = field(default_factory=dict)
    versions: dict[int, list[int]] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def changed(self, n: int, seq: int, version: int) -> None:
        self.seqs.setdefault(n, []).append(seq)
        self.versions.setdefault(n, []).append(version)

    def least(self, n: int, seq: int) -> int:
        """The version that an answer of that position shows at least."""
        at = bisect.bisect_right(self.seqs.get(n, ()), seq)
        return self.versions[n][at - 1] if at else 0


@dataclass(frozen=True)
class Minute:
    """One open loop: latencies and staleness bounds in milliseconds."""

    p50: float
    p99: float
    staleness_p99: float
    cost_us: float
    hits: float
    answers: int


async def changing(bench: Bench) -> list[Row]:
    """P5: with and without changes in turn; every answer of it is judged."""
    seconds = 2.0 if bench.is_quick else 6.0
    quiet: list[Minute] = []
    busy: list[Minute] = []
    violations: list[float] = []
    scripts: list[float] = []
    with bench.measuring("P5", 3 * bench.rounds + 3):
        async with AsyncExitStack() as stack:
            ours = await started(stack, bench, "ours")
            stack.enter_context(_redis_first(bench))
            connection = await stack.enter_async_context(bench.council.primary())
            town = Town(connection, bench.council.postcodes, random.Random(20261122))
            for number in range(bench.rounds + 1):
                await bench.step("filling", fill(bench, ours, "postcodes"))
                bench.progress(f"round {number} of {bench.rounds}, without changes")
                still, _ = await _open_loop(bench, ours, town, seconds, number)
                bench.progress(f"round {number} of {bench.rounds}, with changes")
                await _reset_scripts(bench)
                moving, wrong = await _while_changing(bench, ours, town, seconds, number)
                if number:
                    quiet.append(still)
                    busy.append(moving)
                violations.append(float(wrong))
                scripts.append(await _longest_script_ms(bench))
    _tell(bench, quiet, busy)
    ratios = [b.p99 / a.p99 for a, b in zip(quiet, busy, strict=True)]
    told = f"{_median(busy, 'p99'):.1f} ms against {_median(quiet, 'p99'):.1f} ms"
    judged = f"answers older than their as-of, of {sum(minute.answers for minute in [*quiet, *busy]):,}"
    return [
        Measured("P5", "violations", 0, 0, violations, judged),
        Measured("P5", "script_ms", 5, 5, scripts, "the longest Redis script, ms"),
        Measured("P5", "p99_ratio", 5, 5, ratios, told, is_worst=False),
    ]


async def _while_changing(bench: Bench, ours: Side, town: Town, seconds: float, number: int) -> tuple[Minute, int]:
    done = asyncio.Event()
    writing = asyncio.create_task(_change(bench, town, seconds, done))
    try:
        result = await _open_loop(bench, ours, town, seconds, number)
    finally:
        done.set()
        await writing
    if writing.result() < 0.9:
        bench.note("P5", f"only {writing.result():.0%} of the changes could be written in their time")
    return result


async def _open_loop(bench: Bench, ours: Side, town: Town, seconds: float, seed: int) -> tuple[Minute, int]:
    seen = await generate(
        bench.council, ours, bench.council.targets("postcodes"),
        rate=_RATE, seconds=seconds, deadline_s=_DEADLINE_S, seed=seed,
    )  # fmt: skip
    records = seen["records"]
    refused = [record for record in records if record[2] != "200"]
    if len(refused) > len(records) / 100:
        kinds, share = dict(Counter(record[2] for record in refused)), sum(seen["cpu_s"]) / seen["seconds"]
        raise Unfit(
            f"of {len(records)} questions these were not answered: {kinds}; the server had {share:.0%} of a core"
        )
    answered = [record for record in records if record[2] == "200"]
    bench.compared += len(answered)
    # Judged when the writer has stopped or goes on: it notes a change before it commits it, so it knows them all.
    wrong = [record for record in answered if record[6] < town.least(record[3], record[5])]
    if wrong:
        bench.note("P5", f"a violation: {wrong[0]}, where {town.least(wrong[0][3], wrong[0][5])} was there already")
    latencies = [record[1] * 1000 for record in records]
    staleness = [record[8] for record in answered if record[8] is not None] or [0.0]
    minute = Minute(
        percentile(latencies, 50), percentile(latencies, 99), percentile(staleness, 99),
        sum(seen["cpu_s"]) / len(records) * 1e6, sum(record[7] for record in answered) / len(answered), len(answered),
    )  # fmt: skip
    return minute, len(wrong)


async def _change(bench: Bench, town: Town, seconds: float, done: asyncio.Event) -> float:
    """Rows at their time until told to stop, and one load in the middle; which share of the changes was in time."""
    begun, made, loaded = time.monotonic(), 0, False
    while not done.is_set():
        now = time.monotonic() - begun
        if now > seconds / 2 and not loaded:
            loaded = True
            places = min(_LOADED_ROWS // ROWS_A_POSTCODE, town.postcodes)
            await _apply(bench, town, town.chance.sample(range(town.postcodes), places), whole=True)
        elif made >= now * _CHANGES:
            await asyncio.sleep(made / _CHANGES - now)
        else:
            await _apply(bench, town, [town.chance.randrange(town.postcodes)], whole=False)
            made += 1
    return made / ((time.monotonic() - begun) * _CHANGES)


async def _apply(bench: Bench, town: Town, places: Sequence[int], *, whole: bool) -> None:
    """One transaction of the applier: rows, change log and progress; every row of these postcodes, or the first."""
    version, connection = next(town.numbers), town.connection
    async with connection.transaction():
        seen = await read_position(connection)
        if whole:
            texts = [address(n, 0, version) for n in places]
            await connection.execute(_LOAD, [postcode(n) for n in places], texts)
        else:
            n = places[0]
            await connection.execute(_UPDATE, postcode(n), _first_uprn(n), address(n, 0, version))
        tags = {bench.council.tagger.table_tag("address")}
        tags |= {bench.council.tagger.value_tag("address", "postcode", [postcode(n)]) for n in places}
        # as a load does: what would be too long a list is a new epoch
        moved = await advance(
            connection, seen, tags if len(tags) <= TAGS_A_LOAD else None,
            definition=bench.council.tagger.definition, source_position={},
        )  # fmt: skip
        for n in places:
            town.changed(n, moved.seq, version)


def _first_uprn(n: int) -> int:
    return int(rows_of(n)[0]["uprn"])


@contextmanager
def _redis_first(bench: Bench) -> Iterator[None]:
    """Redis goes before the load and Postgres, which are on the same core.

    Its slow log goes by the wall clock: without this it counts the time in which another process had the core.
    """
    pids = bench.processes("valkey")
    try:
        for pid in pids:
            os.setpriority(os.PRIO_PROCESS, pid, -10)
    except PermissionError:
        bench.note("P5", "Redis could not be put first: its scripts' times hold what others took of its core")
    try:
        yield
    finally:
        with suppress(PermissionError):
            for pid in pids:
                os.setpriority(os.PRIO_PROCESS, pid, 0)


async def _reset_scripts(bench: Bench) -> None:
    async with bench.redis() as redis:
        await redis.config_set("slowlog-log-slower-than", _SCRIPT_FLOOR_US)
        await redis.config_set("slowlog-max-len", 100_000)
        await redis.slowlog_reset()


async def _longest_script_ms(bench: Bench) -> float:
    """By Redis's own slow log; what took less than it notes counts as its floor."""
    async with bench.redis() as redis:
        found = await redis.slowlog_get(100_000)
        await redis.config_set("slowlog-log-slower-than", 10_000)
    scripts = [entry for entry in found if bytes(entry["command"]).upper().startswith(b"EVAL")]
    if not scripts:
        return _SCRIPT_FLOOR_US / 1000
    longest = max(scripts, key=lambda entry: int(entry["duration"]))
    if longest["duration"] > _LONG_US:
        words = bytes(longest["command"]).split(b" ")
        bench.note("P5", f"{longest['duration'] / 1000:.1f} ms: {words[1][:8].decode()}…, {len(words)} words or more")
    return float(longest["duration"]) / 1000


def _tell(bench: Bench, quiet: Sequence[Minute], busy: Sequence[Minute]) -> None:
    for name, side in (("without changes", quiet), ("with changes", busy)):
        bench.note(
            "P5",
            f"{name}: p50 {_median(side, 'p50'):.1f} ms, p99 {_median(side, 'p99'):.1f} ms (aim 10), "
            f"staleness p99 {_median(side, 'staleness_p99'):.0f} ms (aim 250), hits {_median(side, 'hits'):.0%}, "
            f"{_median(side, 'cost_us'):.0f} µs a request",
        )


def _median(side: Sequence[Minute], name: str) -> float:
    return float(statistics.median(getattr(minute, name) for minute in side))


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
