"""P6: Redis hung, Redis dead, the silo hung: every question is answered or refused in time, and it is soon over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from tests.load.bench import Bench
from tests.load.bench_changes import percentile
from tests.load.bench_lookups import fill, started
from tests.load.comparison import Measured, Row
from tests.load.sides import Side, generate

_RATE = 300
# Warm keys come again every second; one question of ten is for a key that nobody has asked before.
_WARM = 300
_NEW_EVERY = 10
_BEFORE_S, _FAULT_S, _AFTER_S = 2.0, 3.0, 7.0
# `SILOGATE_LOOKUP_TIMEOUT`, and what a busy machine may add to a deadline that was kept.
_DEADLINE_S, _GRACE_S = 2.0, 0.25
_BUCKET_S = 0.25
_TOO_SLOW_MS = 100.0

Fault = Callable[[Bench], AbstractAsyncContextManager[None]]


async def outages(bench: Bench) -> list[Row]:
    """P6: each outage under questions for warm and for new keys."""
    faults: tuple[tuple[str, Fault], ...] = (
        ("Redis hung", _redis_hung),
        ("Redis dead", _redis_dead),
        ("replica hung", _frozen("replica")),
        ("primary hung", _frozen("postgres")),
        ("replica and primary hung", _frozen("replica", "postgres")),
    )
    unanswered, recoveries = [], []
    with bench.measuring("P6", 2 * len(faults)):
        async with AsyncExitStack() as stack:
            ours = await started(stack, bench, "ours")
            for number, (name, fault) in enumerate(faults):
                await bench.forget_entries()
                await bench.step(f"{name}: filling", fill(bench, ours, "postcodes", (0, _WARM)))
                bench.progress(name)
                lost, recovery_s = _judge(bench, name, await _under(bench, ours, fault, number))
                unanswered.append(float(lost))
                recoveries.append(recovery_s)
    return [
        Measured("P6", "unanswered", 0, 0, unanswered, "questions without an answer or a 503 in time"),
        Measured("P6", "recovery_s", 5, 5, recoveries, "the longest, s after the cause was gone"),
    ]


async def _under(bench: Bench, ours: Side, fault: Fault, number: int) -> tuple[list[Any], float, float]:
    """Questions before, during and after the fault, by the clock of the machine, and when that began and ended."""
    targets = bench.council.targets("mixed")
    targets.write_text("\n".join(_mixed(bench, number)))
    seconds = _BEFORE_S + _FAULT_S + _AFTER_S
    asking = asyncio.create_task(
        generate(bench.council, ours, targets, rate=_RATE, seconds=seconds, deadline_s=_DEADLINE_S, as_listed=True)
    )
    try:
        await asyncio.sleep(_BEFORE_S + 0.2)
        begun = time.time()
        async with fault(bench):
            await asyncio.sleep(_FAULT_S)
        ended = time.time()
        seen = await asking
    finally:
        asking.cancel()
    return [[record[0] + seen["began"], *record[1:]] for record in seen["records"]], begun, ended


def _mixed(bench: Bench, number: int) -> list[str]:
    """Request targets in their order: warm ones over and over, and in between one that is new."""
    warm = bench.council.targets("postcodes").read_text().split("\n")[:_WARM]
    total = int(_RATE * (_BEFORE_S + _FAULT_S + _AFTER_S))
    new = bench.council.targets("premises").read_text().split("\n")[number * total // _NEW_EVERY :]
    return [new[n // _NEW_EVERY] if n % _NEW_EVERY == 0 else warm[n % _WARM] for n in range(total)]


def _judge(bench: Bench, name: str, found: tuple[list[Any], float, float]) -> tuple[int, float]:
    """How many questions were left alone, and how long after the fault anything was still out of the ordinary."""
    records, begun, ended = found
    in_time = [record for record in records if record[2] in {"200", "503"} and record[1] <= _DEADLINE_S + _GRACE_S]
    before, during, after = (
        [record for record in records if first <= record[0] < last]
        for first, last in ((0.0, begun), (begun, ended), (ended, float("inf")))
    )
    recovery_s = 0.0
    for bucket in range(int(_AFTER_S / _BUCKET_S)):
        first = ended + bucket * _BUCKET_S
        here = [record for record in after if first <= record[0] < first + _BUCKET_S]
        if sum(_is_odd(record) for record in here) > len(here) / 20:
            recovery_s = (bucket + 1) * _BUCKET_S
    hits = [_p99_ms([record for record in side if record[7]]) for side in (before, during)]
    refused = sum(record[2] == "503" for record in records)
    bench.note(
        "P6",
        f"{name}: {len(records):,} questions, {len(records) - len(in_time)} not answered in time, {refused} times 503, "
        f"slowest {max(record[1] for record in records):.2f} s; hits p99 {hits[1]:.1f} ms, before {hits[0]:.1f} ms; "
        f"back to normal after {recovery_s:.2f} s",
    )
    return len(records) - len(in_time), recovery_s


def _is_odd(record: list[Any]) -> bool:
    """Refused, slow, or a warm question that Redis did not answer."""
    is_warm = record[3] % _NEW_EVERY != 0
    return bool(record[2] != "200" or record[1] * 1000 > _TOO_SLOW_MS or (is_warm and not record[7]))


def _p99_ms(records: Sequence[list[Any]]) -> float:
    return percentile([record[1] * 1000 for record in records], 99) if records else 0.0


@asynccontextmanager
async def _redis_hung(bench: Bench) -> AsyncIterator[None]:
    await bench.stack.control("valkey", "freeze")
    try:
        yield
    finally:
        await bench.stack.control("valkey", "thaw")


@asynccontextmanager
async def _redis_dead(bench: Bench) -> AsyncIterator[None]:
    await bench.stack.control("valkey", "kill")
    try:
        yield
    finally:
        await bench.stack.control("valkey", "start")
        await bench.give_redis_room()


def _frozen(*servers: str) -> Fault:
    """Every process of these servers stands still, and their sockets stay open."""

    @asynccontextmanager
    async def fault(bench: Bench) -> AsyncIterator[None]:
        pids = bench.processes(*servers)
        _send(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _send(pids, signal.SIGCONT)

    return fault


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        # a backend may have ended meanwhile
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
