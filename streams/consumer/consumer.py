"""The consumer: give it a topic, a group and a handler, and every event reaches the handler, case by case in order."""

import asyncio
import logging
from collections.abc import Iterator

import asyncpg
from aiokafka.errors import KafkaError

from streams import recovery
from streams.consumer.fuse import Fuse, FuseBlown
from streams.consumer.handlers import BatchHandler, CaseHandler
from streams.consumer.limits import ConsumerLimits, Retry
from streams.consumer.mirror import Mirror
from streams.consumer.session import DrainExceeded, Session
from streams.consumer.watchdog import Stalled
from streams.errors import Fenced, Misconfigured
from streams.metrics import StreamMetrics
from streams.outages import DATABASE_ERRORS
from streams.recovery import Shut
from streams.waiting import set_within

log = logging.getLogger(__name__)

_REBUILD = Retry(first_delay_s=0.5, longest_delay_s=15.0)
_STEADY_S = 60.0
_MENDABLE = (KafkaError, OSError, TimeoutError, DrainExceeded, Fenced, Shut, Stalled)
_MOST_STALLS = 3


class Consumer:
    """Reads a topic for one group; any number of processes may run one for the same group and share its partitions.

    It promises, whatever dies or restarts: every event reaches the handler at least once, or is parked; the events of
    one case one at a time and in order; an offset is committed only when everything before it is settled. A case that
    fails waits with growing delays while the others flow, and is parked in `pool`'s database at the limit, after which
    `streams.consumer.replay.resume` brings it back; a `mirror`, which somebody else runs, gets a copy. Memory is
    bounded by `limits`.

    With `detects_restore` an event of a case version that `pool`'s database does not know shuts the gateway
    (`streams.recovery`), and the consumer waits until it is shut no more.
    """

    def __init__(
        self,
        bootstrap: str,
        group: str,
        topic: str,
        handler: BatchHandler | CaseHandler,
        *,
        pool: asyncpg.Pool,
        metrics: StreamMetrics,
        limits: ConsumerLimits | None = None,
        client_id: str | None = None,
        detects_restore: bool = False,
        mirror: Mirror | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._topic = topic
        self._handler = handler
        self._pool = pool
        self._metrics = metrics
        self._limits = limits or ConsumerLimits()
        self._client_id = client_id or f"silogate-{group}"
        self._detects_restore = detects_restore
        self._stalls = 0
        self._mirror = mirror
        self._fuse = None if self._limits.fuse is None else Fuse(self._limits.fuse)

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until `stop` is set: then ends what was begun within the limits' `drain_s`, commits and leaves.

        Cancelling it leaves at once. When Kafka is away or another process took a partition over, it joins afresh.
        Raises Misconfigured when no event can succeed until a person acts (FuseBlown when most cases fail: then it may
        be run again), Stalled when three memberships in a row had events to fetch and fetched none, and whatever is a
        fault of its own.
        """
        attempts = 0
        loop = asyncio.get_running_loop()
        self._metrics.up.labels(self._group).set(1)
        try:
            while not stop.is_set():
                await self._until_not_shut(stop)
                if stop.is_set():
                    return
                started = loop.time()
                error = await self._session(stop)
                if error is None:
                    return
                attempts = 0 if loop.time() - started > _STEADY_S else attempts + 1
                self._note(error)
                await set_within(stop, _REBUILD.delay_s(attempts))
        except Misconfigured as error:
            if isinstance(error, FuseBlown):
                self._metrics.fuse_blown.labels(self._group).inc()
            log.error("consumer.misconfigured", extra={"group": self._group, "reason": error.reason})  # noqa: TRY400 - no fault
            raise
        finally:
            self._metrics.up.labels(self._group).set(0)

    async def _until_not_shut(self, stop: asyncio.Event) -> None:
        """Returns when nothing speaks against handling events, or `stop` is set."""
        while self._detects_restore and not stop.is_set():
            try:
                if await recovery.is_shut(self._pool, timeout_s=self._limits.call_timeout_s) is None:
                    return
            except DATABASE_ERRORS as error:
                log.warning("consumer.shut_unknown", extra={"group": self._group, "error": type(error).__name__})
            await set_within(stop, self._limits.shut_poll_s)

    async def _session(self, stop: asyncio.Event) -> BaseException | None:
        """One membership: None when it was stopped, the error when another membership may mend it."""
        session = Session(
            self._bootstrap,
            self._group,
            self._topic,
            self._handler,
            pool=self._pool,
            metrics=self._metrics,
            limits=self._limits,
            client_id=self._client_id,
            detects_restore=self._detects_restore,
            fuse=self._fuse,
            mirror=self._mirror,
        )
        try:
            await session.run(stop)
        except _MENDABLE as error:
            return self._judged(error, session)
        except BaseExceptionGroup as group:
            return self._judged(_mendable(group), session)
        return None

    def _judged(self, error: BaseException, session: Session) -> BaseException:
        """The error; raises it when it is a stall and building anew has not helped."""
        if session.has_moved:
            self._stalls = 0
        if isinstance(error, Stalled):
            self._stalls += 1
            self._metrics.stalls.labels(self._group).inc()
            log.error("consumer.stalled", extra={"group": self._group, "reason": str(error)})
            if self._stalls >= _MOST_STALLS:
                raise error
        return error

    def _note(self, error: BaseException) -> None:
        if isinstance(error, Fenced):
            self._metrics.fenced.labels(self._group).inc()
        self._metrics.rebuilds.labels(self._group, type(error).__name__).inc()
        log.warning("consumer.rebuild", extra={"group": self._group, "error": type(error).__name__})


def _mendable(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of several errors when a new membership may mend them all; otherwise raises the one it cannot mend."""
    errors = list(_leaves(group))
    for error in errors:
        if not isinstance(error, _MENDABLE):
            raise error
    return errors[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
