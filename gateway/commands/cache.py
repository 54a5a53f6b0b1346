"""`silogate cache`: what Redis holds of each silo, filling it before a rush, and emptying it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cache.definition import IndexTag, quoted
from cache.loader import SiloUnavailable
from cache.metrics import CacheMetrics
from cache.state import State
from gateway.asking import Asking, asking
from gateway.assembly import Assembly
from gateway.commands.lookups import lookups_of, the_lookup
from gateway.commands.opening import opened
from gateway.console import as_json, fail, people, say, shown_seconds
from gateway.declarations import LookupDeclaration
from gateway.lookup import Lookup
from gateway.problems import Problem
from gateway.settings import Settings
from streams.outages import DATABASE_ERRORS

_SCAN = 1_000
_AT_ONCE = 64
_REDIS_TIMEOUT_S = 5.0
_QUERY_TIMEOUT_S = 30.0
_MINT = "update progress set epoch = replace(gen_random_uuid()::text, '-', '') returning epoch"


@dataclass(frozen=True, slots=True)
class Kept:
    """What Redis holds of one silo. `behind` counts rows of the change log; None where it cannot be told."""

    silo: str
    epoch: str | None
    seq: int | None
    behind: int | None
    age_s: float | None
    entries: int
    of_older_epochs: int
    tags: int
    feed: int
    bytes_an_entry: int | None


async def stats(settings: Settings, *, json: bool) -> int:
    """Print what Redis holds of each silo; 0 when every silo that has a state is followed to its end."""
    async with opened(settings, command="cache stats") as assembly, _redis(settings) as redis:
        found = [await _kept(assembly, redis, name) for name in sorted(assembly.folders.silos)]
    if json:
        as_json([asdict(one) for one in found])
    else:
        _print(found)
    return 0 if all(one.behind in (0, None) for one in found) else 1


def _print(found: Iterable[Kept]) -> None:
    table = Table(
        "silo", "entries", "bytes each", "tags", "seq", "behind", "checked", "epoch", box=None, pad_edge=False
    )
    for one in found:
        older = f" (+{one.of_older_epochs:,} of older epochs)" if one.of_older_epochs else ""
        checked = "never" if one.age_s is None else f"{shown_seconds(one.age_s)} ago"
        cells = (one.bytes_an_entry, one.tags, one.seq, one.behind)
        shown = ("?" if cell is None else f"{cell:,}" for cell in cells)
        table.add_row(one.silo, f"{one.entries:,}{older}", *shown, checked, one.epoch or "none")
    people.print(table)


async def _kept(assembly: Assembly, redis: Redis, silo: str) -> Kept:
    prefix = f"silogate:{{{silo}}}:"
    state = State.parse(await redis.get(f"{prefix}state"))  # type: ignore[arg-type] # nothing is decoded
    clock = await redis.time()
    entries = older = 0
    sizes: list[int] = []
    current = f"{prefix}lk:{state.epoch}:".encode() if state is not None else b"-"
    async for keys in _entries(redis, silo):
        of_now = [key for key in keys if key.startswith(current)]
        entries, older = entries + len(of_now), older + len(keys) - len(of_now)
        if len(sizes) < _AT_ONCE and of_now:
            sizes += [await redis.memory_usage(key) or 0 for key in of_now[: _AT_ONCE - len(sizes)]]
    return Kept(
        silo=silo,
        epoch=None if state is None else state.epoch,
        seq=None if state is None else state.seq,
        behind=None if state is None else await _behind(assembly, silo, state),
        age_s=None if state is None else max(0.0, clock[0] + clock[1] / 1e6 - state.time_ms / 1000),
        entries=entries,
        of_older_epochs=older,
        tags=await redis.zcard(f"{prefix}tags"),
        feed=await redis.xlen(f"{prefix}feed"),
        bytes_an_entry=round(sum(sizes) / len(sizes)) if sizes else None,
    )


async def _behind(assembly: Assembly, silo: str, state: State) -> int | None:
    try:
        sql = f"select epoch, seq from {quoted('silo_' + silo)}.progress"  # noqa: S608 - a declared silo, quoted
        row = await assembly.pool.fetchrow(sql, timeout=_QUERY_TIMEOUT_S)
    except DATABASE_ERRORS:
        return None
    return row["seq"] - state.seq if row is not None and row["epoch"] == state.epoch else None


async def _entries(redis: Redis, silo: str) -> AsyncIterator[list[bytes]]:
    """The keys of a silo's entries, some at a time; SCAN never holds Redis up."""
    cursor = 0
    while True:
        cursor, keys = await redis.scan(cursor, match=f"silogate:{{{silo}}}:lk:*", count=_SCAN)
        if keys:
            yield [bytes(key) for key in keys if isinstance(key, bytes)]
        if cursor == 0:
            return


async def purge(settings: Settings, silo: str, *, json: bool) -> int:
    """Empty one silo's cache: a new epoch, which every process follows, and then the entries of the old ones."""
    async with opened(settings, command="cache purge") as assembly, _redis(settings) as redis:
        _known(assembly, silo)
        # The epoch first: an answer read before it can then not be kept, and L1 in every process is emptied.
        epoch = await _minted(assembly, silo)
        gone = 0
        with _bar("entries", total=None, shown=not json) as advance:
            async for keys in _entries(redis, silo):
                stale = [key for key in keys if f":lk:{epoch}:".encode() not in key]
                gone += await redis.unlink(*stale) if stale else 0
                advance(len(keys))
    if json:
        as_json({"silo": silo, "epoch": epoch, "removed": gone})
    else:
        say(f"{silo}: {gone:,} entries removed; lookups begin with epoch {epoch}")
    return 0


async def _minted(assembly: Assembly, silo: str) -> str | None:
    async with assembly.pool.acquire(timeout=_QUERY_TIMEOUT_S) as connection, connection.transaction():
        await connection.execute(f"set local search_path = {quoted('silo_' + silo)}")
        try:
            epoch: str | None = await connection.fetchval(_MINT, timeout=_QUERY_TIMEOUT_S)
        except asyncpg.UndefinedTableError:
            fail(f"{silo}: it was never loaded: run `silogate load {silo}`")
    return epoch


async def warm(settings: Settings, name: str, *, keys: Path | None, limit: int, json: bool) -> int:
    """Ask one lookup for many keys so that the first resident finds them kept; 0 when each could be asked."""
    async with opened(settings, command="cache warm") as assembly:
        declared = the_lookup(lookups_of(assembly.folders), name)
        if declared.over_cases:
            fail(f"{name} is asked of the gateway's own cases and never kept: there is nothing to warm", code=2)
        if declared.personal:
            fail(f"{name} is personal: each question leaves an audit row, so it is asked only for a person", code=2)
        metrics = CacheMetrics(CollectorRegistry())
        async with asking(assembly, metrics) as lookups:
            lookup = Lookup(declared, lookups.groups[name], assembly.ring.hmac)
            asked = list(islice(_from_file(lookup, keys), limit)) if keys else await _of_silo(assembly, lookup, limit)
            counted = await _ask_all(assembly, lookups, declared, asked, metrics, shown=not json)
    if json:
        as_json({"lookup": name, "asked": len(asked), **counted})
    else:
        found = ", ".join(f"{number:,} {source}" for source, number in sorted(counted.items()) if number)
        say(f"{name}: {len(asked):,} questions asked: {found or 'none'}")
    return 1 if counted["failed"] else 0


async def _ask_all(
    assembly: Assembly,
    lookups: Asking,
    declared: LookupDeclaration,
    asked: list[dict[str, object]],
    metrics: CacheMetrics,
    *,
    shown: bool,
) -> dict[str, int]:
    counted = {"hit": 0, "miss": 0, "stale": 0, "bypass": 0, "failed": 0}
    group = lookups.groups[declared.name]
    waiting = iter(asked)

    async def work() -> None:
        for parameters in waiting:
            try:
                answer = await group.answer(parameters, timeout_s=assembly.settings.lookup_timeout)
                counted[answer.source] += 1
            except SiloUnavailable:
                counted["failed"] += 1
            advance(1)

    parts = lookups.silos[declared.definition.silo]
    async with asyncio.TaskGroup() as background:
        running = [background.create_task(parts.silo.run()), background.create_task(parts.store.run())]
        with _bar(declared.name, total=len(asked), shown=shown) as advance:
            async with asyncio.TaskGroup() as workers:
                for _ in range(_AT_ONCE):
                    workers.create_task(work())
        await _offered(metrics, counted["miss"])
        for task in running:
            task.cancel()
    return counted


async def _offered(metrics: CacheMetrics, misses: int) -> None:
    """Wait until Redis has had each new answer, or for as long as that should ever take."""
    deadline = asyncio.get_running_loop().time() + _REDIS_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        samples = [sample for metric in metrics.fills.collect() for sample in metric.samples]
        if sum(sample.value for sample in samples if sample.name.endswith("_total")) >= misses:
            return
        await asyncio.sleep(0.02)


async def _of_silo(assembly: Assembly, lookup: Lookup, limit: int) -> list[dict[str, object]]:
    """Every value of the one index that the lookup asks by."""
    declared = lookup.declaration
    definition = declared.definition
    rules = [(table, rule) for table, rule in definition.tags.items() if isinstance(rule, IndexTag)]
    for table, rule in rules:
        index = assembly.taggers[definition.silo].indexes[table][rule.index]
        if index.kind == "value" and set(rule.parameters) == set(definition.parameters):
            break
    else:
        fail(f"{declared.name}: no index holds all its parameters; name the keys with --keys FILE", code=2)
    columns = ", ".join(map(quoted, index.columns))
    schema = quoted(f"silo_{definition.silo}")
    sql = f"select distinct {columns} from {schema}.{quoted(table)} order by 1 limit $1"  # noqa: S608 - declared names, quoted
    rows = await assembly.pool.fetch(sql, limit, timeout=_QUERY_TIMEOUT_S)
    found = []
    for row in rows:
        try:
            found.append(lookup.parameters_of(dict(zip(rule.parameters, row.values(), strict=True))))
        except Problem:
            continue  # a row that no question can name
    return found


def _from_file(lookup: Lookup, path: Path) -> Iterator[dict[str, object]]:
    """One question a line: a JSON object, or the bare value where there is one parameter."""
    names = list(lookup.declaration.parameters)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        try:
            given: Any = orjson.loads(text) if text.startswith("{") else {names[0]: text}
            yield lookup.parameters_of(given)
        except orjson.JSONDecodeError:
            fail(f"{path}:{number}: is not a JSON object", code=2)
        except Problem as problem:
            fail(f"{path}:{number}: {problem.field}: {problem.detail}", code=2)


def _known(assembly: Assembly, silo: str) -> None:
    if silo not in assembly.folders.silos:
        fail(f"there is no silo {silo}; there are: {', '.join(sorted(assembly.folders.silos))}", code=2)


def _redis(settings: Settings) -> Redis:
    return Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S
    )


@contextmanager
def _bar(label: str, *, total: int | None, shown: bool) -> Iterator[Any]:
    """Draw a bar on a terminal; elsewhere the summary is enough."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=people, transient=True,
        disable=not shown or not people.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task(label, total=total)
        yield lambda number: progress.update(bar, advance=number)
