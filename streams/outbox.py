"""Moves committed events from the outbox to Kafka: nothing lost, nothing out of order within a case.

Any number of relays may run. Each owns whole buckets of cases by advisory locks that end with its connection, and
shares them with the other relays. It selects what is unpublished, never by a cursor: ids commit out of order. Of each
case one event is on its way at a time; the next goes when Kafka has acknowledged it, and a case that has many lets the
others go first after a few. A relay that dies between the acknowledgement and its mark sends the event again: consumers
drop a version that they have seen. One that stood still sends nothing before Postgres has said that its buckets are
still its own.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from streams.cases.rows import BUCKETS, OUTBOX_CHANNEL
from streams.discarding import discard
from streams.failpoints import reach
from streams.metrics import StreamMetrics
from streams.outages import DATABASE_ERRORS
from streams.waiting import first_of, set_within

log = logging.getLogger(__name__)

ProducerFactory = Callable[[], AIOKafkaProducer]
T = TypeVar("T")

_PRESENCE, _BUCKET = 0x0517_0001, 0x0517_0002  # classes of advisory locks
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 5.0
_BEAT_S, _SLEPT_S = 1.0, 2.0
_WAVES = 32  # of one selection: so many events of a case, then the others have their turn
_TURNS = 4  # full selections, after which a case that has rested goes again
_PURGED_AT_ONCE = 1000
_PURGE_S = 0.5
_WORD = "select 1"

_SELECT = """
select id, topic, key, version, headers, value from (
    select *, sum(octet_length(value)) over (order by id) - octet_length(value) as bytes_before from (
        select id, topic, key, version, headers, value from outbox
        where published_at is null and bucket = any($1::smallint[]) and key <> all($2::text[])
        order by id limit $3
    ) as head
) as bounded where bytes_before < $4 order by id
"""
_MARK = "update outbox set published_at = now() where id = any($1::bigint[])"
_CENSUS = """
select count(*) as pending,
       coalesce(extract(epoch from now() - (select created_at from outbox where published_at is null
                                            order by id limit 1)), 0)::float8 as age
from outbox where published_at is null
"""
_PURGE = """
with gone as (delete from outbox where id in (
    select id from outbox where published_at < now() - make_interval(secs => $1) limit $2) returning 1)
select count(*) from gone
"""
_RELAYS = """
select count(distinct pid) from pg_locks where locktype = 'advisory' and classid = $1::int::oid and granted
   and database = (select oid from pg_database where datname = current_database())
"""
_TAKE = """
select bucket, pg_try_advisory_lock($1::int, bucket) as got from (
    select bucket from generate_series(0, $2::int - 1) as bucket
    where not exists (
        select from pg_locks as held
        where held.locktype = 'advisory' and held.classid = $1::int::oid and held.objid = bucket::oid
          and held.database = (select oid from pg_database where datname = current_database()))
    order by random() limit $3
) as free
"""
_DROP_BUCKET = "select pg_advisory_unlock($1::int, $2::int)"


def producer(bootstrap: str, client_id: str, *, request_timeout_ms: int = 10_000) -> AIOKafkaProducer:
    """A producer fit for the relay: every acknowledgement from all replicas, and retries that do not duplicate."""
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        request_timeout_ms=request_timeout_ms,
        linger_ms=2,
        max_batch_size=256 * 1024,
    )


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How much a relay holds at once and how long it waits for what.

    A frozen process keeps its connection and with it its buckets: Postgres ends a connection that was silent for
    `silence_s`, and then another relay has them. A living one says a word every second, whatever it waits for. The
    backlog is counted every `census_s`, by the relay that owns the first bucket.
    """

    batch_events: int = 500
    batch_bytes: int = 8 * 1024 * 1024
    poll_s: float = 0.5
    balance_s: float = 1.0
    census_s: float = 5.0
    ack_timeout_s: float = 10.0
    statement_timeout_s: float = 10.0
    keep_published_s: float = 3 * 24 * 3600.0
    blocked_key_s: float = 30.0
    silence_s: float = 6.0


class _BrokerAway(Exception):
    """Kafka did not take what was sent; whether it will keep it is not known."""


class Relay:
    """One relay. `run` returns when `stop` is set, and never because Kafka or Postgres is away."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        producer_factory: ProducerFactory,
        metrics: StreamMetrics,
        *,
        buckets: int = BUCKETS,
        limits: RelayLimits | None = None,
    ) -> None:
        self._pool = pool
        self._make_producer = producer_factory
        self._metrics = metrics
        self._buckets = buckets
        self._limits = limits or RelayLimits()
        self._owned: set[int] = set()
        self._blocked: dict[str, float] = {}
        self._rested: set[str] = set()
        self._turns = 0
        self._spoke = (0.0, 0.0)
        self._census_at = 0.0
        self._producer: AIOKafkaProducer | None = None
        self._wake = asyncio.Event()
        self._delay_s = _FIRST_DELAY_S

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Publishes until stopped. A failure is counted, waited out and tried again; what is not marked goes again."""
        stop = stop or asyncio.Event()
        try:
            while not stop.is_set():
                try:
                    async with self._pool.acquire(timeout=self._limits.statement_timeout_s) as connection:
                        await self._relay(connection, stop)
                except DATABASE_ERRORS as error:
                    # What the producer still holds is of buckets that may be another's by now.
                    await self._discard_producer()
                    await self._failed("database", error, stop)
        finally:
            await self._discard_producer()
            self._metrics.outbox_buckets.set(0)

    async def _relay(self, connection: asyncpg.Connection, stop: asyncio.Event) -> None:
        def wake(*_: object) -> None:
            self._wake.set()

        self._owned.clear()
        await self._execute(
            connection,
            "select set_config('idle_session_timeout', $1, false)",
            f"{int(self._limits.silence_s * 1000)}ms",
        )
        await self._execute(connection, "select pg_advisory_lock_shared($1::int, 0)", _PRESENCE)
        await connection.add_listener(OUTBOX_CHANNEL, wake)
        try:
            await self._own(connection, stop)
        finally:
            # The pool ends the locks when the connection comes back; the listener it would complain about.
            with suppress(*DATABASE_ERRORS):
                await connection.remove_listener(OUTBOX_CHANNEL, wake)

    async def _own(self, connection: asyncpg.Connection, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        balance_at = 0.0
        while not stop.is_set():
            if loop.time() >= balance_at:
                await self._balance(connection)
                await self._housekeep(connection)
                balance_at = loop.time() + self._limits.balance_s
            self._wake.clear()
            rows = await self._unpublished(connection, loop.time())
            if not rows:
                await self._alive(connection, self._pause(stop))
                continue
            reach("outbox.after_select")
            try:
                await self._publish(connection, rows, stop)
            except _BrokerAway as error:
                await self._alive(connection, self._discard_producer())
                await self._alive(connection, self._failed("kafka", error.__cause__ or error, stop))
            else:
                self._delay_s = _FIRST_DELAY_S

    async def _publish(
        self, connection: asyncpg.Connection, rows: Sequence[asyncpg.Record], stop: asyncio.Event
    ) -> None:
        """Sends in waves: the oldest event of every case, then the next oldest of those that were acknowledged."""
        queues: dict[str, deque[asyncpg.Record]] = {}
        for row in rows:
            queues.setdefault(row["key"], deque()).append(row)
        waves = 0
        while queues and waves < _WAVES and not stop.is_set():
            waves += 1
            if self._has_slept():
                await self._execute(connection, _WORD)  # fails if the buckets were given to another meanwhile
            sent, error = await self._alive(connection, self._send([queue.popleft() for queue in queues.values()]))
            reach("outbox.after_send")
            if sent:
                await self._execute(connection, _MARK, [row["id"] for row in sent])
                self._metrics.outbox_published.inc(len(sent))
            reach("outbox.after_mark")
            if error is not None:
                raise _BrokerAway from error
            going_on = {row["key"] for row in sent}
            queues = {key: queue for key, queue in queues.items() if queue and key in going_on}
        self._rested.update(queues)

    async def _send(self, wave: Sequence[asyncpg.Record]) -> tuple[list[asyncpg.Record], BaseException | None]:
        """The rows that Kafka has acknowledged, and what went wrong with the others."""
        pending: dict[asyncio.Future[object], asyncpg.Record] = {}
        error: BaseException | None = None
        try:
            async with asyncio.timeout(self._limits.ack_timeout_s):
                producer = await self._started()
                for row in wave:
                    if self._has_slept():
                        break  # unsent rows are selected again, by whoever owns them then
                    future = await self._send_one(producer, row)
                    if future is not None:
                        pending[future] = row
        except (KafkaError, OSError, TimeoutError) as unsent:
            error = unsent
        if pending:
            await asyncio.wait(pending, timeout=self._limits.ack_timeout_s)
        sent = []
        for future, row in pending.items():
            failure = _failure(future)
            if failure is None:
                sent.append(row)
            else:
                error = error or failure
        return sent, error

    async def _send_one(self, producer: AIOKafkaProducer, row: asyncpg.Record) -> asyncio.Future[object] | None:
        headers = [(name, text.encode()) for name, text in orjson.loads(row["headers"])]
        try:
            future: asyncio.Future[object] = await producer.send(
                row["topic"], row["value"], key=row["key"].encode(), headers=headers
            )
        except MessageSizeTooLargeError:
            # This case waits for a person, with everything after it; the others must not.
            self._blocked[row["key"]] = asyncio.get_running_loop().time() + self._limits.blocked_key_s
            self._metrics.outbox_failures.labels("record").inc()
            log.error(  # noqa: TRY400 - the trace tells nothing that the name does not
                "outbox.too_large", extra={"outbox_id": row["id"], "bytes": len(row["value"])}
            )
            return None
        # When the producer is discarded later, nobody asks this future any more; asyncio would complain.
        future.add_done_callback(_failure)
        return future

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = self._make_producer()
            try:
                await self._producer.start()
            except BaseException:
                await self._discard_producer()
                raise
        return self._producer

    async def _discard_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await discard(producer)

    async def _unpublished(self, connection: asyncpg.Connection, now: float) -> Sequence[asyncpg.Record]:
        self._blocked = {key: until for key, until in self._blocked.items() if until > now}
        if not self._owned:
            return []
        limits = self._limits
        passed_over = [*self._blocked, *self._rested]
        buckets = sorted(self._owned)
        rows = await self._fetch(connection, _SELECT, buckets, passed_over, limits.batch_events, limits.batch_bytes)
        if self._rested:
            self._turns += 1
            if len(rows) < limits.batch_events or self._turns >= _TURNS:
                self._rested.clear()
                self._turns = 0
                return rows or await self._unpublished(connection, now)
        return rows

    async def _balance(self, connection: asyncpg.Connection) -> None:
        """Takes or gives buckets until each living relay has its share. Called only when nothing is on its way."""
        relays = (await self._fetch(connection, _RELAYS, _PRESENCE))[0][0]
        share = math.ceil(self._buckets / max(relays, 1))
        for bucket in sorted(self._owned)[share:]:
            await self._execute(connection, _DROP_BUCKET, _BUCKET, bucket)
            self._owned.discard(bucket)
        if len(self._owned) < share:
            taken = await self._fetch(connection, _TAKE, _BUCKET, self._buckets, share - len(self._owned))
            self._owned.update(row["bucket"] for row in taken if row["got"])
        self._metrics.outbox_buckets.set(len(self._owned))

    async def _housekeep(self, connection: asyncpg.Connection) -> None:
        """Counts the backlog and removes what was published long ago: one relay does it for all."""
        if 0 not in self._owned:
            self._metrics.outbox_pending.set(0)
            self._metrics.outbox_age.set(0)
            self._census_at = 0.0
            return
        now = asyncio.get_running_loop().time()
        if now >= self._census_at:
            census = (await self._fetch(connection, _CENSUS))[0]
            self._metrics.outbox_pending.set(census["pending"])
            self._metrics.outbox_age.set(census["age"])
            self._census_at = now + self._limits.census_s
        await self._purge(connection)

    async def _purge(self, connection: asyncpg.Connection) -> None:
        """All that is old, but for half a second at most: there are events to publish."""
        loop = asyncio.get_running_loop()
        until, gone = loop.time() + _PURGE_S, _PURGED_AT_ONCE
        while gone == _PURGED_AT_ONCE and loop.time() < until:
            gone = (await self._fetch(connection, _PURGE, self._limits.keep_published_s, _PURGED_AT_ONCE))[0][0]

    async def _alive(self, connection: asyncpg.Connection, work: Coroutine[Any, Any, T]) -> T:
        """Does it, with a word to Postgres every second; without an answer it is given up, and the error raised."""
        doing = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({doing}, timeout=_BEAT_S))[0]:
                await self._execute(connection, _WORD)
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.gather(doing, return_exceptions=True)
        return doing.result()

    def _has_slept(self) -> bool:
        """Whether Postgres has not heard from this process for longer than one that runs can be silent.

        By both clocks: the monotonic one stands still while the machine does, and the other can be set.
        """
        monotonic, wall = self._spoke
        return max(asyncio.get_running_loop().time() - monotonic, time.time() - wall) > _SLEPT_S

    async def _pause(self, stop: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.poll_s):
                await first_of(self._wake, stop)

    async def _failed(self, reason: str, error: BaseException, stop: asyncio.Event) -> None:
        self._metrics.outbox_failures.labels(reason).inc()
        log.warning("outbox.failed", extra={"reason": reason, "error": type(error).__name__})
        delay_s = random.uniform(0, self._delay_s)  # noqa: S311 - jitter
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)
        await set_within(stop, delay_s)

    async def _execute(self, connection: asyncpg.Connection, statement: str, *values: object) -> None:
        self._speaks()
        await connection.execute(statement, *values, timeout=self._limits.statement_timeout_s)

    async def _fetch(self, connection: asyncpg.Connection, statement: str, *values: object) -> list[asyncpg.Record]:
        self._speaks()
        rows: list[asyncpg.Record] = await connection.fetch(
            statement, *values, timeout=self._limits.statement_timeout_s
        )
        return rows

    def _speaks(self) -> None:
        self._spoke = asyncio.get_running_loop().time(), time.time()


def _failure(future: asyncio.Future[object]) -> BaseException | None:
    if not future.done():
        return TimeoutError()
    return asyncio.CancelledError() if future.cancelled() else future.exception()
