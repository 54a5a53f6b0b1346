"""The audit log: who asked or did what, to which case, with which outcome. Append-only, hash-chained, group-committed.

Each writing process has its own chain, so writers never wait for each other. A row's hash covers its content and the
hash before it: altering or removing a row breaks the chain at that row. Cutting rows off a chain's end leaves no trace
in the chain itself; that needs a copy of the last hashes kept elsewhere.

What must be told once only has a name, `once`: whoever is second with it, in whatever process, adds no row and is told
that the row is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from gateway.telemetry import EdgeMetrics
from streams.outages import DATABASE_ERRORS

Detail = Mapping[str, Any]

_START = bytes(32)
_BATCH = 500
_PAGE = 1000
_INSERT = """
insert into audit (chain, n, at, actor, action, subject, outcome, correlation_id, detail, previous, hash, once)
select $1, r.n, r.at, r.actor, r.action, r.subject, r.outcome, r.correlation_id, r.detail::jsonb, r.previous, r.hash,
    r.once
from unnest($2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::bytea[], $11::bytea[], $12::text[])
     as r(n, at, actor, action, subject, outcome, correlation_id, detail, previous, hash, once)
"""
_TOLD = "select once from audit where once = any($1)"
_ONCE = "audit_once"
_TIP = "select n, hash from audit where chain = $1 order by n desc limit 1"
_CHAINS = "select distinct chain from audit order by chain"
_READ = """
select n, at, actor, action, subject, outcome, correlation_id, detail::text as detail, previous, hash
from audit where chain = $1 and n > $2 order by n limit $3
"""


class AuditUnavailable(Exception):
    """The row could not be committed in time. What it describes must not be acknowledged."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one row says. `subject` is a case id or an HMAC, `detail` small facts: neither holds a personal value."""

    at: datetime
    actor: str
    action: str
    subject: str
    outcome: str
    correlation_id: str
    detail: Detail
    # Not part of the hash: it repeats what action and detail say, and older rows have none.
    once: str | None = None

    def hash(self, chain: UUID, n: int, previous: bytes) -> bytes:
        """The row's link in the chain."""
        content = [
            str(chain),
            n,
            self.at.astimezone(UTC).isoformat(timespec="microseconds"),
            self.actor,
            self.action,
            self.subject,
            self.outcome,
            self.correlation_id,
            dict(self.detail),
        ]
        return hashlib.sha256(previous + orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()


@dataclass(frozen=True, slots=True)
class Broken:
    """The first row of a chain that does not follow from the one before it."""

    chain: UUID
    n: int
    reason: str


@dataclass(slots=True)
class _Entry:
    """A row on its way. `taken`: the writer has begun to commit it."""

    row: Row
    committed: asyncio.Future[None]
    taken: bool = False


class Audit:
    """Writes one chain: `record` returns when the row is committed, `run` is the only writer and owns the tip.

    `note` is for who cannot wait.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        chain: UUID | None = None,
        *,
        metrics: EdgeMetrics,
        limit: int = 10_000,
        timeout_s: float = 5.0,
    ) -> None:
        self.chain = chain or uuid4()
        self._pool = pool
        self._metrics = metrics
        self._timeout_s = timeout_s
        # None wakes the writer when it is to end
        self._queue: asyncio.Queue[_Entry | None] = asyncio.Queue(limit)
        self._is_ending = False
        self._tip: tuple[int, bytes] | None = None

    async def record(
        self,
        *,
        actor: str,
        action: str,
        subject: str,
        outcome: str,
        correlation_id: str,
        detail: Detail,
        once: str | None = None,
    ) -> None:
        """Commits one row; raises AuditUnavailable if that was not done in time, whatever the reason.

        A row with a name is added only where no row has it yet; the one that is there counts as this one.
        """
        row = _row(
            actor=actor,
            action=action,
            subject=subject,
            outcome=outcome,
            correlation_id=correlation_id,
            detail=detail,
            once=once,
        )
        entry = self._put(row)
        try:
            async with asyncio.timeout(self._timeout_s):
                # a caller that is cancelled leaves its row to be written: what it describes has happened
                await asyncio.shield(entry.committed)
        except TimeoutError:
            if not entry.taken:
                entry.committed.cancel()
                raise AuditUnavailable("the row was not committed in time") from None
            # Being written now: given up here it could be recorded twice. The writer's own deadline bounds this wait.
            await entry.committed

    def note(self, *, actor: str, action: str, subject: str, outcome: str, correlation_id: str, detail: Detail) -> None:
        """Has one row written without waiting for it: for who is being cancelled, and acknowledges nothing any more.

        A row that cannot be written is only counted, as nobody is left to be told.
        """
        row = _row(
            actor=actor,
            action=action,
            subject=subject,
            outcome=outcome,
            correlation_id=correlation_id,
            detail=detail,
        )
        try:
            self._put(row)
        except AuditUnavailable:
            self._metrics.audit_failures.inc()

    def _put(self, row: Row) -> _Entry:
        entry = _Entry(row, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            raise AuditUnavailable("too many rows are waiting") from None
        self._metrics.audit_queue.set(self._queue.qsize())
        return entry

    async def run(self) -> None:
        """Writes until cancelled; then what still waits, for `timeout_s` at most, and refuses the rest.

        The requests that are cut off when a process ends leave their rows last, and nobody can ask them again.
        """
        self._is_ending = False
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write_on())
                try:
                    await asyncio.shield(writer)
                except asyncio.CancelledError:
                    await self._end(writer)
                    raise
        finally:
            self._refuse_waiting()

    async def _end(self, writer: asyncio.Task[None]) -> None:
        self._is_ending = True
        with suppress(asyncio.QueueFull):  # then it is awake
            self._queue.put_nowait(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await writer

    async def _write_on(self) -> None:
        while not (self._is_ending and self._queue.empty()):
            waiting = [await self._queue.get()]
            while len(waiting) < _BATCH and not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            # Who has given up may record the same thing again: its row must not be written as well.
            batch = [entry for entry in waiting if entry is not None and not entry.committed.done()]
            if batch:
                await self._write(batch)

    def _refuse_waiting(self) -> None:
        while not self._queue.empty():
            entry = self._queue.get_nowait()
            if entry is not None and not entry.committed.done():
                self._metrics.audit_failures.inc()
                _refuse([entry], "the writer has stopped")

    async def _write(self, batch: list[_Entry]) -> None:
        started = time.perf_counter()
        for entry in batch:
            entry.taken = True
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._commit([entry.row for entry in batch])
        except DATABASE_ERRORS:
            # The commit may have happened although its answer was lost, so the tip is read again before the next row.
            self._tip = None
            self._metrics.audit_failures.inc(len(batch))
            _refuse(batch, "the database did not commit the row")
        except BaseException:
            self._metrics.audit_failures.inc(len(batch))
            _refuse(batch, "the writer has stopped")
            raise
        else:
            for entry in batch:
                if not entry.committed.done():
                    entry.committed.set_result(None)
            self._metrics.audit_rows.inc(len(batch))
            self._metrics.audit_commit.observe(time.perf_counter() - started)
        self._metrics.audit_queue.set(self._queue.qsize())

    async def _commit(self, rows: list[Row]) -> None:
        if self._tip is None:
            tip = await self._pool.fetchrow(_TIP, self.chain)
            self._tip = (0, _START) if tip is None else (tip["n"], tip["hash"])
        while rows := await self._untold(rows):
            try:
                self._tip = await self._append(rows, *self._tip)
            except asyncpg.UniqueViolationError as error:
                # Another process told one of them in this very moment: its commit is what we waited for.
                if error.constraint_name != _ONCE:
                    raise
            else:
                return

    async def _untold(self, rows: list[Row]) -> list[Row]:
        """Leave out the rows whose name is told already, here or in the database."""
        names = {row.once for row in rows if row.once is not None}
        if not names:
            return rows
        told: set[str | None] = {row["once"] for row in await self._pool.fetch(_TOLD, list(names))}
        left = []
        for row in rows:
            if row.once is None or row.once not in told:
                left.append(row)
                told.add(row.once)
        return left

    async def _append(self, rows: list[Row], n: int, previous: bytes) -> tuple[int, bytes]:
        links: list[tuple[int, bytes, bytes]] = []
        for row in rows:
            n += 1
            link = row.hash(self.chain, n, previous)
            links.append((n, previous, link))
            previous = link
        await self._pool.execute(
            _INSERT,
            self.chain,
            [number for number, _, _ in links],
            [row.at for row in rows],
            [row.actor for row in rows],
            [row.action for row in rows],
            [row.subject for row in rows],
            [row.outcome for row in rows],
            [row.correlation_id for row in rows],
            [orjson.dumps(row.detail).decode() for row in rows],
            [before for _, before, _ in links],
            [link for _, _, link in links],
            [row.once for row in rows],
        )
        return n, previous


def _row(
    *,
    actor: str,
    action: str,
    subject: str,
    outcome: str,
    correlation_id: str,
    detail: Detail,
    once: str | None = None,
) -> Row:
    return Row(
        at=datetime.now(UTC),
        actor=_storable(actor),
        action=_storable(action),
        subject=_storable(subject),
        outcome=_storable(outcome),
        correlation_id=_storable(correlation_id),
        detail={_storable(name): _plain(value) for name, value in detail.items()},
        once=once,
    )


def _storable(text: str) -> str:
    # one text that the database does not take would fail the rows of everybody else in its group
    return text.replace("\x00", "\N{SYMBOL FOR NULL}").encode(errors="replace").decode()


def _plain(value: object) -> object:
    """Only what comes back from a jsonb column as it went in, so that the hash can be computed again."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    if isinstance(value, Mapping):
        return {_storable(str(name)): _plain(below) for name, below in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(below) for below in value]
    return _storable(str(value))


def _refuse(batch: list[_Entry], reason: str) -> None:
    for entry in batch:
        if not entry.committed.done():
            entry.committed.set_exception(AuditUnavailable(reason))
            entry.committed.exception()  # a caller that was cancelled asks nobody any more


async def verify(pool: asyncpg.Pool) -> list[Broken]:
    """The first broken link of each chain that has one; empty when every chain holds together."""
    broken = [await _verify_chain(pool, row["chain"]) for row in await pool.fetch(_CHAINS)]
    return [link for link in broken if link is not None]


async def _verify_chain(pool: asyncpg.Pool, chain: UUID) -> Broken | None:
    n, previous = 0, _START
    while rows := await pool.fetch(_READ, chain, n, _PAGE):
        for row in rows:
            if row["n"] != n + 1:
                return Broken(chain, n + 1, "the row is missing")
            if row["previous"] != previous:
                return Broken(chain, row["n"], "the row does not name the hash before it")
            if _stored(row).hash(chain, row["n"], previous) != row["hash"]:
                return Broken(chain, row["n"], "the row was altered")
            n, previous = row["n"], row["hash"]
    return None


def _stored(row: asyncpg.Record) -> Row:
    return Row(
        row["at"],
        row["actor"],
        row["action"],
        row["subject"],
        row["outcome"],
        row["correlation_id"],
        orjson.loads(row["detail"]),
    )
