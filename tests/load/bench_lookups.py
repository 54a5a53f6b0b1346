"""P1, P2 and P13: lookups that are answered without asking the silo, against what people use today."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tests.load.bench import Bench
from tests.load.comparison import Comparison, Row
from tests.load.council import postcode, premises_row, rows_of
from tests.load.sides import Sample, Side, Unfit, generate, sample_of, start_ours, start_peer

_PEERS = (
    ("bare", "bare", (0.55, 0.8)),
    ("redis", "redis_get", (2.0, 3.0)),
    ("aiocache", "aiocache_redis", (5.0, 9.0)),
    ("fastapi", "fastapi_cache2", (8.0, 20.0)),
)
_L1 = {"SILOGATE_L1_ENTRIES": "100000", "SILOGATE_L1_BYTES": "512MiB"}
_MOST_PASSES = 30
# How many times the keys, for the slope.
TIMES = (1, 4, 16)
_MOST_ATTEMPTS = 5
# As many logical databases as the development servers' Redis has.
_DATABASES = 512


async def warm(bench: Bench) -> list[Row]:
    """P1: every answer out of Redis, validated; beside a bare handler and three ways to cache."""
    with bench.measuring("P1", (bench.rounds + 1) * (len(_PEERS) + 1) + 6):
        async with AsyncExitStack() as stack:
            ours = await started(stack, bench, "ours")
            await bench.step("filling", fill(bench, ours, "postcodes"))
            sides = [ours, *[await peer(stack, bench, module, n) for n, (_, module, _) in enumerate(_PEERS, 1)]]
            targets = bench.council.targets("postcodes")
            for side in sides[3:]:
                # the two that fill themselves, each key once
                await bench.step(f"filling {side.name}", generate(bench.council, side, targets, once=True, seconds=120))
            rounds = await alternate(bench, sides)
            if not bench.is_quick:
                await _slope(bench, ours)
    return [
        against("P1", measure, bars, (rounds[0], theirs))
        for (measure, _, bars), theirs in zip(_PEERS, rounds[1:], strict=True)
    ]


async def from_l1(bench: Bench) -> list[Row]:
    """P2: the same out of the process's own memory."""
    with bench.measuring("P2", 2 * (bench.rounds + 1) + 2):
        async with AsyncExitStack() as stack:
            ours = await started(stack, bench, "ours", settings=_L1)
            await bench.step("filling Redis", fill(bench, ours, "postcodes"))
            await bench.step("filling L1", fill(bench, ours, "postcodes"))
            bare = await peer(stack, bench, "bare", 1)
            before = await bench.told_by_redis("stats")
            rounds = await alternate(bench, [ours, bare])
            after = await bench.told_by_redis("stats")
    asked = after["keyspace_hits"] - before["keyspace_hits"]
    requests = sum(sample.requests for sample in rounds[0])
    if asked > requests / 20:
        raise Unfit(f"Redis was read {asked:,} times for {requests:,} requests: these answers are not from L1")
    return [against("P2", "bare", (0.75, 1.1), rounds)]


async def two_processes(bench: Bench) -> list[Row]:
    """P13 `gateway`: two processes on the server's core cost no more for one request than one does."""
    with bench.measuring("P13", 2 * (bench.rounds + 1) + 3):
        async with AsyncExitStack() as stack:
            one = await started(stack, bench, "one-process")
            two = await started(stack, bench, "two-processes", processes=2)
            await bench.step("filling", fill(bench, one, "postcodes"))
            # Redis has all of it now; each process has yet to see every question, as the first one has
            for n in range(len(two.ports)):
                await bench.step(f"showing them to process {n + 1}", fill(bench, two.only(n), "postcodes"))
            alone, together = await alternate(bench, [one, two])
    pairs = [(b.cost_us, a.cost_us) for a, b in zip(alone, together, strict=True)]
    return [Comparison("P13", "gateway", "lower", 1.15, 1.05, "us a request, two against one", pairs)]


async def started(
    stack: AsyncExitStack, bench: Bench, name: str, *, processes: int = 1, settings: Mapping[str, str] | None = None
) -> Side:
    """`silogate serve` until the stack closes."""
    profile = bench.profile_of(name)
    more = {"SILOGATE_L1_ENTRIES": "0", **(settings or {})}
    side = await start_ours(bench.council, bench.cores, name=name, processes=processes, profile=profile, more=more)
    stack.push_async_callback(side.stop)
    return side


async def peer(
    stack: AsyncExitStack, bench: Bench, module: str, database: int, more: Mapping[str, str] | None = None
) -> Side:
    """Start a peer with the answers that the gateway gave; its keys stand in a logical database of its own."""
    council = bench.council
    answers = council.root / "answers.json"
    if not answers.exists():
        made = {postcode(n): answer_text(n) for n in range(council.postcodes)}
        answers.write_text(json.dumps(made))
    redis = f"{council.servers.redis_url.rpartition('/')[0]}/{(bench.database + database) % _DATABASES}"
    side = await start_peer(
        council, bench.cores, module, {"BENCH_REDIS": redis, "BENCH_ANSWERS": str(answers), **(more or {})}
    )
    stack.push_async_callback(side.stop)
    return side


def answer_text(n: int) -> str:
    """An answer as the gateway sends it, byte for byte but for the as-of token."""
    results = ", \n ".join(json.dumps(row, separators=(",", ":")) for row in rows_of(n))
    as_of = {"token": f"gazetteer:{'0' * 32}:1", "time": "2026-11-22T12:00:00.000Z"}
    shown = json.dumps(as_of, separators=(",", ":"))
    return f'{{"lookup":"addresses-of-postcode","verdict":"found","as_of":{shown},"results":[{results}]}}'


async def fill(bench: Bench, ours: Side, kind: str, part: Sequence[int] | None = None, *, is_sure: bool = True) -> None:
    """Ask for every key, and again for those that were no hits, until there are none; if not `is_sure`, only once."""
    missed: list[int] | None = None
    for attempt in range(_MOST_PASSES):
        targets = bench.council.targets(kind)
        seen = await generate(
            bench.council, ours, targets, once=True, part=part, only=missed, seconds=300, seed=attempt
        )
        if seen["unasked"] or seen["errors"]:
            raise Unfit(f"{ours.name}: {seen['unasked']} keys could not be asked, {seen['errors']} errors")
        if not seen["missed"] or not is_sure:
            return
        # the first pass is all misses, so the second asks for all of them too
        missed = seen["missed"]
    raise Unfit(f"{ours.name}: after {_MOST_PASSES} passes {len(seen['missed'])} keys are still no hits")


async def alternate(bench: Bench, sides: Sequence[Side]) -> list[list[Sample]]:
    """Every side in turn, round by round, after one that does not count; each round's answers are compared."""
    found: list[list[Sample]] = [[] for _ in sides]
    for number in range(bench.rounds + 1):
        for side, samples in zip(sides, found, strict=True):
            bench.progress(f"round {number} of {bench.rounds}, {side.name}")
            sample = await _round(bench, side, number)
            if number:
                samples.append(sample)
    return found


async def _round(bench: Bench, side: Side, number: int) -> Sample:
    """One side for some seconds. A moment in which the machine had no time for Redis makes misses: then once more."""
    for _ in range(_MOST_ATTEMPTS):
        seconds = bench.seconds if number else bench.seconds / 2
        targets = bench.council.targets("postcodes")
        seen = await generate(bench.council, side, targets, seconds=seconds, seed=number)
        sample = sample_of(side, seen)
        compare_answers(side, seen, bench)
        if not is_ours(side) or sample.hits >= bench.least_hits * sample.requests:
            return sample
        bench.note("!", f"{side.name}, round {number}, again: only {sample.hits} of {sample.requests} were hits")
    raise Unfit(f"{side.name}: in {_MOST_ATTEMPTS} attempts there were never {bench.least_hits:.0%} hits")


def is_ours(side: Side) -> bool:
    return bool(side.admin_ports)


def compare_answers(side: Side, seen: dict[str, Any], bench: Bench) -> None:
    """The gate: what a side says is what stands in the silo. The bare handler has one answer for all."""
    for target, head, body in seen["samples"]:
        expected = rows_of(0 if side.name == "bare" else target)
        if head[9:12] != "200" or json.loads(body)["results"] != expected:
            raise Unfit(f"{side.name} answers {target} wrongly: {head}\n{body[:300]}")
    if not seen["samples"]:
        raise Unfit(f"{side.name}: no answer of {seen['requests']} was compared")
    bench.compared += len(seen["samples"])


def against(name: str, measure: str, bars: tuple[float, float], sides: Sequence[Sequence[Sample]]) -> Comparison:
    """Requests a second of processor time, ours to theirs; `bars` are what must and what may be met."""
    (must, aim), (ours, theirs) = bars, sides
    pairs = [(1e6 / a.cost_us, 1e6 / b.cost_us) for a, b in zip(ours, theirs, strict=True)]
    note = f"{told(ours)} against {told(theirs)}"
    return Comparison(name, measure, "higher", must, aim, "requests a processor second", pairs, note)


def told(samples: Sequence[Sample]) -> str:
    """What a side did, for a person: processor time and requests a second."""
    cost = statistics.median(sample.cost_us for sample in samples)
    rate = statistics.median(sample.a_second for sample in samples)
    return f"{cost:.1f} µs, {rate:,.0f}/s"


async def _slope(bench: Bench, ours: Side) -> None:
    """How the cost of a hit grows with the number of keys: answers of one row, at 1, 4 and 16 times the keys."""
    told_of, filled = [], 0
    for times in TIMES:
        keys = bench.council.premises * times // TIMES[-1]
        await bench.step(f"filling {keys:,} keys", fill(bench, ours, "premises", (filled, keys), is_sure=False))
        bench.progress(f"{keys:,} keys")
        targets = bench.council.targets("premises")
        seen = await generate(bench.council, ours, targets, part=(0, keys), seconds=bench.seconds)
        sample = sample_of(ours, seen)
        wrong = [body for target, _, body in seen["samples"] if json.loads(body)["results"] != [premises_row(target)]]
        if wrong:
            raise Unfit(f"ours, {keys:,} keys, answers wrongly: {wrong[0][:300]}")
        told_of.append(f"{keys:,} keys {sample.cost_us:.1f} µs ({sample.hits / sample.requests:.1%} hits)")
        filled = keys
    bench.note("P1", f"slope, answers of one row: {'; '.join(told_of)}")
