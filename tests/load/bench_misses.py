"""P3 and P4: lookups that have to ask the silo."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from tests.load.bench import Bench
from tests.load.bench_lookups import TIMES, against, compare_answers, peer, started
from tests.load.comparison import Measured, Row, value
from tests.load.council import SILO, rows_of
from tests.load.machine import used_s
from tests.load.sides import Sample, Side, Unfit, generate, sample_of

_SQL = Path(__file__).with_name("declared") / "lookups" / "addresses-of-postcode.sql"
_PROCESSES, _AT_ONCE = 4, 50
_COLD_KEYS = 5
# Postgres adds up what its sessions did about once a second, and each gateway tries its lookups on the silo within two
# or three seconds of its start.
_STATISTICS_S = 3.0
_SETTLED_S = 60.0


async def all_misses(bench: Bench) -> list[Row]:
    """P3: each key for the first time, against one query a request."""
    with bench.measuring("P3", 3 * (bench.rounds + 1) + 4):
        async with AsyncExitStack() as stack:
            ours = await started(stack, bench, "ours")
            sql = _SQL.read_text(encoding="utf-8").replace(":postcode", "$1")
            more = {"BENCH_SQL": sql, "BENCH_POSTGRES": bench.council.servers.replica_url}
            theirs = [await peer(stack, bench, module, 5, more) for module in ("pool_fetch", "pool_fetch_json")]
            await _answering(bench, ours)
            rounds = [await _in_turn(bench, number, (ours, *theirs)) for number in range(bench.rounds + 1)][1:]
            slope = [] if bench.is_quick else [await _cost_of(bench, ours, times) for times in TIMES]
    own, fetched, as_json = ([one[side][0] for one in rounds] for side in range(3))
    least = against("P3", "", (0, 0), (own, as_json))
    bench.note("P3", f"against pool.fetch of JSON made by Postgres: {value(least):.2f} ({least.shown})")
    _tell_of_postgres(bench, rounds)
    if slope:
        shown = ", ".join(f"{times}x {cost:.1f} µs" for times, cost in zip(TIMES, slope, strict=True))
        bench.note("P3", f"slope by keys, answers of a row: {shown}")
    return [against("P3", "pool.fetch", (3.0, 5.0), (own, fetched))]


_Round = tuple[Sample, float]


async def _in_turn(bench: Bench, number: int, sides: Sequence[Side]) -> list[_Round]:
    """One round of each side: its sample, and the time of Postgres for one key in microseconds."""
    found = []
    for side in sides:
        bench.progress(f"round {number} of {bench.rounds}, {side.name}")
        await bench.forget_entries()
        found.append(await _ask_each_once(bench, side, seed=number))
    return found


async def _ask_each_once(bench: Bench, side: Side, *, seed: int) -> _Round:
    postgres = bench.processes("postgres", "replica")
    before = used_s(postgres)
    targets = bench.council.targets("postcodes")
    seen = await generate(bench.council, side, targets, once=True, seconds=bench.seconds, seed=seed, sample_every=50)
    spent = used_s(postgres) - before
    sample = sample_of(side, seen)
    compare_answers(side, seen, bench)
    # what was on its way when the entries were taken away is stored afterwards
    if sample.hits > sample.requests / 100:
        raise Unfit(f"{side.name}: {sample.hits} of {sample.requests} answers were hits")
    return sample, spent / sample.requests * 1e6


def _tell_of_postgres(bench: Bench, rounds: Sequence[Sequence[_Round]]) -> None:
    ours, theirs, _ = (statistics.median(spent for _, spent in side) for side in zip(*rounds, strict=True))
    bench.note("P3", f"Postgres, for one key: {ours:.0f} µs against {theirs:.0f} µs, {ours / theirs:.2f} x (aim ≤ 0.4)")


async def _answering(bench: Bench, ours: Side) -> None:
    """Wait until the gateway asks in batches, which it does once it has looked at the silo."""
    bench.progress("warm-up")
    await generate(bench.council, ours, bench.council.targets("postcodes"), once=True, seconds=2)


async def _cost_of(bench: Bench, ours: Side, times: int) -> float:
    keys = bench.council.premises * times // TIMES[-1]
    bench.progress(f"{keys:,} keys")
    await bench.forget_entries()
    targets = bench.council.targets("premises")
    seen = await generate(bench.council, ours, targets, once=True, part=(0, keys), seconds=bench.seconds, seed=times)
    sample = sample_of(ours, seen)
    if sample.hits > sample.requests / 100:
        raise Unfit(f"ours: {sample.hits} of {sample.requests} answers were hits")
    return sample.cost_us


async def one_cold_key(bench: Bench) -> list[Row]:
    """P4: four processes are asked for one key by fifty at once: how often the silo is asked, key by key."""
    with bench.measuring("P4", _COLD_KEYS + 2):
        async with AsyncExitStack() as stack:
            ours = await started(stack, bench, "four-processes", processes=_PROCESSES)
            bench.progress("warm-up")
            await bench.forget_entries()
            looked_up = await _settled(bench)
            queries = [await _ask_at_once(bench, ours, n) for n in range(1, _COLD_KEYS + 1)]
            bench.progress("what Postgres saw")
            seen_there = await _settled(bench) - looked_up
    if seen_there > sum(queries):
        raise Unfit(f"Postgres was asked {seen_there} times, the gateways counted {sum(queries):.0f}")
    shown = f"queries for {_PROCESSES} x {_AT_ONCE} requests; Postgres saw {seen_there} for {_COLD_KEYS} keys"
    return [Measured("P4", "queries", 4, 1, queries, shown)]


async def _ask_at_once(bench: Bench, ours: Side, n: int) -> float:
    bench.progress(f"key {n} of {_COLD_KEYS}")
    before = await _asked_of_the_silo(ours)
    line = bench.council.targets("postcodes").read_text().split("\n")[n]
    targets = bench.council.targets("one")
    targets.write_text("\n".join([line] * _PROCESSES * _AT_ONCE))
    seen = await generate(
        bench.council, ours, targets, once=True, as_listed=True, seconds=10, connections=_PROCESSES * _AT_ONCE,
        sample_every=1,
    )  # fmt: skip
    sample = sample_of(ours, seen)
    wrong = [body for _, _, body in seen["samples"] if json.loads(body)["results"] != rows_of(n)]
    if sample.requests != _PROCESSES * _AT_ONCE or wrong:
        raise Unfit(f"{sample.requests} answers, {len(wrong)} of them wrong: {wrong[:1]}")
    bench.compared += len(seen["samples"])
    return await _asked_of_the_silo(ours) - before


async def _asked_of_the_silo(ours: Side) -> float:
    """Batches for the lookups. The sentinel's canary is read once a second, and asks too when Redis was too slow."""
    asked = await ours.counted("silogate_silo_loads_total", silo=SILO)
    for source in ("miss", "bypass"):
        asked -= await ours.counted("silogate_lookup_answers_total", lookup=f"canary-of-{SILO}", source=source)
    return asked


async def _settled(bench: Bench) -> int:
    """How often Postgres has looked a postcode up, once that no longer changes."""
    last = -1
    async with asyncio.timeout(_SETTLED_S):
        while (now := await _looked_up(bench)) != last:
            last = now
            await asyncio.sleep(_STATISTICS_S)
    return now


async def _looked_up(bench: Bench) -> int:
    total = 0
    for url in (bench.council.servers.postgres_url, bench.council.servers.replica_url):
        connection: Any = await asyncpg.connect(url, timeout=10)
        try:
            total += await connection.fetchval(
                "select coalesce(sum(idx_scan), 0)::int8 from pg_stat_user_indexes"
                " where relname = 'address' and indexrelname not like '%pkey'",
                timeout=10,
            )
        finally:
            await connection.close(timeout=5)
    return total
