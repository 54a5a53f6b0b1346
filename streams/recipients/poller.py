"""Brings a recipient's statuses back: reads what changed there, and changes our cases accordingly, once each.

A poll reads every row of ours that changed since the last one, and a little further back (`overlap`), because a row
becomes visible when its transaction commits and not when its time of change says. Pages are bounded and come in the
order of that time; the position moves only with the transaction that settles a page. What is read again is known by its
message id, which is remembered in the transaction that changes the case.

A status counts as news only when it differs from the one last seen at the recipient (xref.remote_status). A row also
changes because we wrote to it, and then its old status must not undo a newer one of ours. When both sides changed, the
recipient owns the status and wins.

Two recipients that answer each other's changes would change a case for ever: a change counts one hop more than the
event that it may be the answer to, and one over the limit is refused and counted.

A row whose time of change lies in the recipient's future is not read before that time, and counted: a mistyped year
must not carry the position past everything that changes until then.
"""

import asyncio
import logging
import random
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from streams.cases.cases import Cases, ImmutableField, Invalid, UnknownCase, VersionConflict
from streams.cases.keys import Erased
from streams.errors import Misconfigured, Rejected, Retryable
from streams.events import HopLimit
from streams.failpoints import reach
from streams.mapping.compile import Mapping
from streams.mapping.declaration import PollDeclaration, RecipientDeclaration
from streams.outages import DATABASE_ERRORS
from streams.recipients.database import RecipientDatabase
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.observed import Known, Noted, Observation, known_of, position, settle
from streams.recipients.refusals import of_connector
from streams.waiting import set_within

_log = logging.getLogger(__name__)

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_DELAY_S = 60.0
# The class of the advisory locks "this recipient is being polled"; the object is a hash of the recipient's name
_LOCK_CLASS = 0x5110_9011
_SHOWN = 60


class Poller:
    """Polls one recipient until told to stop. Any number may run for it: one works, the others wait for its turn."""

    def __init__(
        self,
        declaration: RecipientDeclaration,
        database: RecipientDatabase,
        *,
        cases: Cases,
        gateway_pool: asyncpg.Pool,
        metrics: RecipientMetrics,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name = declaration.recipient
        self.lock = (_LOCK_CLASS, zlib.crc32(self.name.encode()) - 2**31)
        self._origin = declaration.origin
        self._plan = declaration.poll or PollDeclaration()
        self._database = database
        self._cases = cases
        self._gateway = gateway_pool
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._clock = clock
        self._jitter = jitter

    async def run(self, stop: asyncio.Event) -> None:
        """Polls every `every` seconds; while the recipient is away or misdeclared, less and less often."""
        failures = 0
        while not stop.is_set():
            ended = await self._attempt(stop)
            failures = 0 if ended == "done" else failures + 1
            await set_within(stop, self._delay(failures))

    async def poll(self, stop: asyncio.Event | None = None) -> int:
        """One poll, from the last position to the end; the number of cases it changed.

        Raises Unavailable or Misconfigured for the recipient, and the driver's errors for the gateway's own database.
        """
        async with self._gateway.acquire(timeout=self._timeout_s) as guard:
            if not await guard.fetchval("select pg_try_advisory_lock($1, $2)", *self.lock, timeout=self._timeout_s):
                return 0
            try:
                return await self._read_on(guard, stop)
            finally:
                if not guard.is_closed():
                    await guard.execute("select pg_advisory_unlock($1, $2)", *self.lock, timeout=self._timeout_s)

    def _delay(self, failures: int) -> float:
        if failures == 0:
            return self._plan.every
        longest = min(_LONGEST_DELAY_S, self._plan.every * 2.0 ** min(failures, 10))
        return max(self._plan.every, self._jitter(0.0, longest))

    async def _attempt(self, stop: asyncio.Event) -> str:
        try:
            await self.poll(stop)
            ended = "done"
        except Misconfigured as error:
            ended = "misconfigured"
            _log.error("poll_misconfigured", extra={"recipient": self.name, "reason": error.reason})
        except Retryable as error:
            ended = "unavailable"
            _log.warning("poll_unavailable", extra={"recipient": self.name, "reason": error.reason})
        except DATABASE_ERRORS as error:
            # the gateway's own database: it is away or restarting, and polling goes on when it is back
            ended = "unavailable"
            _log.warning("poll_unavailable", extra={"recipient": self.name, "reason": type(error).__name__})
        # Whatever a row made us stumble over, the position has not moved and every other task of the worker goes on.
        except Exception as error:  # noqa: BLE001
            ended = "unavailable"
            _log.error("poll_failed", extra={"recipient": self.name, "reason": type(error).__name__})
        self._metrics.poll_ended(self.name, ended, self._clock())
        return ended

    async def _read_on(self, guard: asyncpg.Connection, stop: asyncio.Event | None) -> int:
        since = await position(guard, self.name, timeout_s=self._timeout_s)
        start = _BEGINNING if since is None else since - timedelta(seconds=self._plan.overlap)
        mapping = (await self._database.ready()).mapping
        await self._count_ahead()
        last: Observation | None = None
        changed = 0
        may_move = True
        while stop is None or not stop.is_set():
            page = await self._page(start, last)
            if not page:
                break
            changed_here, may_move = await self._take(guard, mapping, page, may_move=may_move)
            changed += changed_here
            last = page[-1]
            if len(page) < self._plan.page:
                break
        return changed

    async def _count_ahead(self) -> None:
        ready = await self._database.ready()
        try:
            async with self._database.connection() as connection:
                rows = await connection.fetchval(ready.statements.ahead, timeout=self._timeout_s)
        except DATABASE_ERRORS as error:
            raise of_connector(error) from None
        self._metrics.rows_ahead(self.name, rows)

    async def _page(self, start: datetime, last: Observation | None) -> list[Observation]:
        ready = await self._database.ready()
        try:
            async with self._database.connection() as connection:
                if last is None:
                    rows = await connection.fetch(
                        ready.statements.first_page, start, self._plan.page, timeout=self._timeout_s
                    )
                else:
                    rows = await connection.fetch(
                        ready.statements.page,
                        last.modified,
                        self._plan.page,
                        last.remote_id,
                        timeout=self._timeout_s,
                    )
        except DATABASE_ERRORS as error:
            if isinstance(error, asyncpg.InvalidCachedStatementError):
                self._database.forget()
            raise of_connector(error) from None
        return [Observation(row["id"], row["key"], row["code"], row["modified"], row["age_s"]) for row in rows]

    async def _take(
        self, guard: asyncpg.Connection, mapping: Mapping, page: Sequence[Observation], *, may_move: bool
    ) -> tuple[int, bool]:
        """Applies one page: how many cases it changed, and whether the position may go on moving behind it."""
        known = await known_of(guard, self._origin, self.name, page, timeout_s=self._timeout_s)
        noted: list[Noted] = []
        read_to: Observation | None = None
        changed = 0
        for observation, of_case in zip(page, known, strict=True):
            outcome = await self._outcome(guard, mapping, observation, of_case)
            changed += outcome == "changed"
            if outcome == "behind":
                # it has to be read again, so from here on the position stays where it is
                may_move = False
                continue
            noted.append(Noted(observation, outcome, of_case.case_id))
            read_to = observation if may_move else read_to
        reach("poller.before_settle")
        await settle(guard, self._origin, self.name, noted, read_to, timeout_s=self._timeout_s)
        return changed, may_move

    async def _outcome(
        self, guard: asyncpg.Connection, mapping: Mapping, observation: Observation, known: Known
    ) -> str:
        if known.seen:
            # remembered before, perhaps by a poll that died before it settled its page
            return "seen"
        if guard.is_closed():
            # with it went the lock: another poller may be ahead of us by now
            raise asyncpg.InterfaceError("the connection that held the poller's lock is gone")
        outcome = await self._judged(mapping, observation, known)
        self._metrics.polled(self.name, outcome.partition(":")[0])
        return outcome

    async def _judged(self, mapping: Mapping, observation: Observation, known: Known) -> str:
        """What an observation means, and the change of the case where it is news."""
        if known.case_id is None or known.case_type != mapping.case_type.name:
            return "unknown_case"
        if not known.linked and observation.age_s < self._plan.overlap:
            # its row was committed a moment ago and xref is about to follow: the overlap brings it again
            return "behind"
        if observation.code == self._last_status(mapping, known):
            return "unchanged"
        try:
            status = mapping.reverse_status(observation.code)
        except Rejected:
            return f"unmapped:{str(observation.code)[:_SHOWN]}"
        if status == known.status:
            return "unchanged"
        return await self._change(observation, known, status)

    def _last_status(self, mapping: Mapping, known: Known) -> str | None:
        if known.remote_status is not None or mapping.status is None:
            return known.remote_status
        # never taken note of: then what we would have written is no news
        code = mapping.status.out.get(known.status)
        return None if code is None else str(code)

    async def _change(self, observation: Observation, known: Known, status: str) -> str:
        assert known.case_id is not None  # noqa: S101 - `_judged` has looked
        try:
            await self._cases.change(
                known.case_id,
                {"status": status},
                expected_version=known.version,
                actor=self._origin,
                origin=self._origin,
                correlation_id=known.correlation_id,
                hops=known.hops(self._origin),
                message=(self._origin, observation.message_id),
            )
        except VersionConflict:
            # somebody changed the case in this moment: judge it again with what is true then
            return "behind"
        except HopLimit:
            # two recipients answer each other: the case stays as it is, and a person has to look at both
            _log.warning("poll_hop_limit", extra={"recipient": self.name, "case_id": str(known.case_id)})
            return "refused:HopLimit"
        except (UnknownCase, ImmutableField, Invalid, Erased) as error:
            return f"refused:{type(error).__name__}"
        except DATABASE_ERRORS:
            raise
        # A missing key, a key that the ring lacks, altered bytes: this case's alone, and the other cases of the page
        # must not wait for a person to mend it. Its text may quote the case, so only the class is told.
        except Exception as error:  # noqa: BLE001
            _log.error("poll_case_refused", extra={"recipient": self.name, "reason": type(error).__name__})
            return f"refused:{type(error).__name__}"
        return "changed"
