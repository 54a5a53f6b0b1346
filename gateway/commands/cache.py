"""`silogate cache`: what Redis holds of each silo, filling it before a rush, and emptying it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.table import Table

from cache.definition import quoted
from cache.state import State
from gateway.assembly import Assembly
from gateway.commands.opening import opened
from gateway.console import as_json, as_table, bar, fail, say, shown_seconds
from gateway.settings import Settings
from streams.outages import DATABASE_ERRORS

_SCAN = 1_000
_SAMPLED = 64
_REDIS_TIMEOUT_S = 5.0
_QUERY_TIMEOUT_S = 30.0
_MINT = "update progress set epoch = replace(gen_random_uuid()::text, '-', '') returning epoch"


@dataclass(frozen=True, slots=True)
class Kept:
    """What Redis holds of one silo. `behind` counts rows of the change log; None where positions cannot be compared.

    `followed`: there is no state yet, or it is the silo's own position.
    """

    silo: str
    followed: bool
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
    """Print what Redis holds of each silo; 0 when what it holds of each is the silo's newest, else 1."""
    async with opened(settings, command="cache stats") as assembly, _redis(settings) as redis:
        found = [await _kept(assembly, redis, name) for name in sorted(assembly.folders.silos)]
    if json:
        as_json([asdict(one) for one in found])
    else:
        _print(found)
    return 0 if all(one.followed for one in found) else 1


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
    as_table(table)


async def _kept(assembly: Assembly, redis: Redis, silo: str) -> Kept:
    prefix = f"silogate:{{{silo}}}:"
    # The silo first and Redis right after it: what is committed in between is not counted as missing.
    tip = await _tip(assembly, silo)
    state = State.parse(await redis.get(f"{prefix}state"))  # type: ignore[arg-type] # nothing is decoded
    clock = await redis.time()
    behind = None
    if state is not None and tip is not None and tip[0] == state.epoch:
        behind = max(0, tip[1] - state.seq)
    entries = older = 0
    sizes: list[int] = []
    current = f"{prefix}lk:{state.epoch}:".encode() if state is not None else b"-"
    async for keys in _entries(redis, silo):
        of_now = [key for key in keys if key.startswith(current)]
        entries, older = entries + len(of_now), older + len(keys) - len(of_now)
        if len(sizes) < _SAMPLED and of_now:
            sizes += [await redis.memory_usage(key) or 0 for key in of_now[: _SAMPLED - len(sizes)]]
    return Kept(
        silo=silo,
        followed=state is None or behind == 0,
        epoch=None if state is None else state.epoch,
        seq=None if state is None else state.seq,
        behind=behind,
        age_s=None if state is None else max(0.0, clock[0] + clock[1] / 1e6 - state.time_ms / 1000),
        entries=entries,
        of_older_epochs=older,
        tags=await redis.zcard(f"{prefix}tags"),
        feed=await redis.xlen(f"{prefix}feed"),
        bytes_an_entry=round(sum(sizes) / len(sizes)) if sizes else None,
    )


async def _tip(assembly: Assembly, silo: str) -> tuple[str, int] | None:
    """Epoch and seq of the silo itself; None where they cannot be read."""
    try:
        sql = f"select epoch, seq from {quoted('silo_' + silo)}.progress"  # noqa: S608 - a declared silo, quoted
        row = await assembly.pool.fetchrow(sql, timeout=_QUERY_TIMEOUT_S)
    except DATABASE_ERRORS:
        return None
    return None if row is None else (row["epoch"], row["seq"])


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
        try:
            with bar("entries", total=None, shown=not json) as advance:
                async for keys in _entries(redis, silo):
                    stale = [key for key in keys if f":lk:{epoch}:".encode() not in key]
                    gone += await redis.unlink(*stale) if stale else 0
                    advance(len(keys))
        except RedisError as error:
            fail(
                f"{silo}: Redis cannot be used ({type(error).__name__}); the new epoch has begun all the same, so "
                "nothing of the old one will be served, and its entries go by themselves"
            )
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


def _known(assembly: Assembly, silo: str) -> None:
    if silo not in assembly.folders.silos:
        fail(f"there is no silo {silo}; there are: {', '.join(sorted(assembly.folders.silos))}", code=2)


def _redis(settings: Settings) -> Redis:
    return Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S
    )
