"""Reads of a silo that leave behind what an answer made of them depends on: the position they are of, and the tags.

A recording is opened where a cache misses and closed where the answer is offered to it. In between, every read through
a `RecordedSilo` adds to all the recordings that are open in the same task, and in the tasks that it starts. So the
function's own code has nothing to do, and what read nothing, or what cannot be guarded, has nothing to be stored by.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import asyncpg

from cache.examine.functions import check_functions
from cache.examine.plan import explained, explained_for_any
from cache.examine.tree import rewritten
from cache.loader import NotPrepared, SiloUnavailable
from cache.server import Refused, Server, ServerFailed
from cache.state import Position
from cache.values import Tagger

# More would cost each read of the entry more than the function does.
_MOST_TAGS = 500
# A function that fails leaves its recording open; what is open for so long that this many came after is given up.
_MOST_OPEN = 16
_STATEMENTS_KNOWN = 1000
_PROGRESS_SQL = "select epoch, seq, id, definition, applied_at from progress"
_NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})


@dataclass(slots=True)
class Recording:
    """What was read of one silo since a cache missed `keys`. `position` is the oldest; None as long as nothing was.

    `spoilt` is set for good when the answer may hang on something that no tag guards.
    """

    owner: object
    keys: set[str]
    silo: str | None = None
    position: Position | None = None
    applied_ms: int = 0
    tags: set[str] = field(default_factory=set)
    spoilt: bool = False
    closed: bool = False
    replace: bool = False

    def add(self, silo: str, position: Position, applied_ms: int, tags: Iterable[str]) -> None:
        """A read at that position. Two snapshots count as the older one; two silos or epochs as nothing."""
        if self.spoilt:
            return
        self.tags.update(tags)
        if self.position is None:
            self.silo, self.position, self.applied_ms = silo, position, applied_ms
        elif (silo, position.epoch, position.definition) != (self.silo, self.position.epoch, self.position.definition):
            self.spoilt = True
        elif position.seq < self.position.seq:
            self.position, self.applied_ms = position, applied_ms
        self.spoilt = self.spoilt or len(self.tags) > _MOST_TAGS


# The recordings that are open here, the innermost last. A task begins with its parent's, and shares them.
_OPEN: ContextVar[tuple[Recording, ...]] = ContextVar("silogate_open_recordings", default=())


def begin(owner: object, keys: Iterable[str], *, replace: bool = False) -> None:
    """Open a recording for what `owner` has just missed, in place of an earlier one for the same."""
    wanted = set(keys)
    forget(owner, wanted)
    still = _OPEN.get()
    for given_up in still[: max(0, len(still) + 1 - _MOST_OPEN)]:
        given_up.closed = True
    _OPEN.set((*still[-(_MOST_OPEN - 1) :], Recording(owner, wanted, replace=replace)))


def take(owner: object, key: str) -> Recording | None:
    """The recording that was opened for this key, if there is one; it is closed for that key."""
    found = next(
        (one for one in reversed(_OPEN.get()) if one.owner is owner and key in one.keys and not one.closed), None
    )
    if found is not None:
        forget(owner, {key})
    return found


def forget(owner: object, keys: Iterable[str]) -> None:
    """Close what is open for these keys."""
    wanted = set(keys)
    for one in _OPEN.get():
        if one.owner is owner:
            one.keys -= wanted
            # Also seen by the task that began it, where an answer is stored by another one.
            one.closed = one.closed or not one.keys
    _OPEN.set(tuple(one for one in _OPEN.get() if not one.closed))


def note(silo: str, position: Position, applied_ms: int, tags: Iterable[str]) -> None:
    """A read was answered: everything that is open depends on it."""
    for one in _OPEN.get():
        if not one.closed:
            one.add(silo, position, applied_ms, tags)


def spoil() -> None:
    """Nothing that is open may be stored."""
    for one in _OPEN.get():
        one.spoilt = True


class RecordedSilo:
    """Asks one silo for whatever the application wants to know, and records it.

    `urls` are the silo's servers, tried in their order. A replica that lags does no harm: its answer is recorded at its
    own position. Use it as `async with`.
    """

    def __init__(
        self,
        tagger: Tagger,
        urls: Sequence[str],
        *,
        role: str = "silogate_lookup",
        statement_timeout_ms: int = 2000,
        connections: int = 4,
    ) -> None:
        self.tagger = tagger
        self._timeout_s = statement_timeout_ms / 1000 + 0.25
        self._servers = [
            _SnapshotServer(
                url,
                silo=tagger.silo,
                schema=f"silo_{tagger.silo}",
                role=role,
                statement_timeout_ms=statement_timeout_ms,
                connections=connections,
            )
            for url in urls
        ]
        self._known: OrderedDict[str, frozenset[str] | None] = OrderedDict()

    async def __aenter__(self) -> Self:
        for server in self._servers:
            await server.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            await server.close()

    async def fetch(
        self, sql: str, *arguments: object, touched: Mapping[str, Sequence[str]] = _NOTHING
    ) -> list[asyncpg.Record]:
        """The rows of one SELECT, with `$1`, `$2`, … for the arguments.

        `touched` gives for a table the tags of what is asked of it, as `tagger.value_tag` and `tagger.circle_tags` make
        them: only rows with these tags may be able to change the result. A table that it does not name counts as a
        whole. Which tables those are is taken from the plan; a query that reads anything but tables of the silo, or
        calls a function that may answer differently next time, is answered and never stored. That is found out once: a
        view that is made anew needs a new process.

        Raises SiloUnavailable when no server answers, NotPrepared before the first load, Refused or Poisoned when the
        query is wrong or fails for these arguments. A function that catches one of them is not stored either.
        """
        try:
            rows, position, applied_ms, tables = await self._ask(sql, arguments)
        except BaseException:
            # Also cancelled: what the function makes of it hangs on a moment of ill luck and not on the silo.
            spoil()
            raise
        if tables is None:
            spoil()
            return rows
        tags = [tag for table in tables for tag in touched.get(table) or (self.tagger.table_tag(table),)]
        note(self.tagger.silo, position, applied_ms, tags)
        return rows

    async def _ask(
        self, sql: str, arguments: tuple[object, ...]
    ) -> tuple[list[asyncpg.Record], Position, int, frozenset[str] | None]:
        for server in self._servers:
            try:
                rows, progress, names = await server.read(sql, arguments, self._known, timeout_s=self._timeout_s)
            except ServerFailed:
                continue
            except Refused as refused:
                if refused.table_missing:
                    raise NotPrepared from None
                raise
            if not progress:
                raise NotPrepared
            applied_ms = int(progress[0]["applied_at"].timestamp() * 1000)
            guarded = names is not None and names <= self.tagger.indexes.keys()
            return rows, Position.of(progress[0]), applied_ms, names if guarded else None
        raise SiloUnavailable("no server of the silo answers")


class _SnapshotServer(Server):
    """Answers a query together with the position that it was answered at."""

    async def read(
        self,
        sql: str,
        arguments: tuple[object, ...],
        known: OrderedDict[str, frozenset[str] | None],
        *,
        timeout_s: float,
    ) -> tuple[list[asyncpg.Record], list[asyncpg.Record], frozenset[str] | None]:
        """The rows, the row of `progress` from the same snapshot, and the tables; raises as `fetch` does."""
        progress: list[asyncpg.Record] = []

        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            # One snapshot for both: in READ COMMITTED each statement would have its own.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                progress[:] = await connection.fetch(_PROGRESS_SQL)
                rows: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
                if sql not in known:
                    known[sql] = await _tables(connection, sql, len(arguments))
                    while len(known) > _STATEMENTS_KNOWN:
                        known.popitem(last=False)
                return rows

        rows = await self._ask(work, timeout_s)
        return rows, progress, known.get(sql)


async def _tables(connection: asyncpg.Connection, sql: str, parameters: int) -> frozenset[str] | None:
    """The tables that the query may read; None when it reads something else too, or is not sure to answer the same."""
    schema: Any = await connection.fetchval("select current_schema()")
    plan = await (explained_for_any(connection, sql, parameters) if parameters else explained(connection, sql, ()))
    tree = await rewritten(connection, sql)
    if tree is None or any(found.level == "error" for found in await check_functions(connection, tree, sql)):
        return None
    if any(scan.schema != schema for scan in plan.scans) or plan.kinds & {
        "Function Scan",
        "Foreign Scan",
        "ModifyTable",
    }:
        return None
    return frozenset(scan.table for scan in plan.scans)
