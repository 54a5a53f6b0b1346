"""Cases into a table of a recipient's own Postgres database: many at once, each exactly once in effect.

How a batch is applied:

1. The events that the flow gives to this recipient are opened and mapped, the newest of each case first; what does not
   map is named in the answer, and an older event of that case takes its place.
2. One transaction in the recipient's database: the fence is held, then one statement writes every row whose version is
   newer than the one there. So redelivery, replay and two workers at once change nothing, and a worker that lost its
   partition writes nothing.
3. After its commit the gateway's table xref says where each case is.

A row that the recipient refuses would fail the whole statement. Then the transaction is begun again and the rows are
halved under savepoints until the refused ones are alone, all in that one transaction. The search takes a quarter of
the deadline at most: rows that hang are named, and those whose turn did not come are Untried.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dictionary
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg

from streams.cases.keys import CaseKeys
from streams.consumer.fence import Fence, hold, register
from streams.consumer.replay import Rehearsal
from streams.errors import Rejected, Retryable, Unavailable
from streams.events import CaseEvent
from streams.failpoints import reach
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration
from streams.outages import DATABASE_ERRORS
from streams.recipients.candidates import Choice, MapEvent, choose
from streams.recipients.database import Ready, RecipientDatabase
from streams.recipients.links import Link, record
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.opened import Opened, open_events
from streams.recipients.push import Held, Patience, Push
from streams.recipients.refusals import is_too_slow, of_connector, of_row
from streams.recipients.rehearsing import rehearsed

Wanted = Callable[[CaseEvent, Dictionary[str, Any]], bool]


class PostgresRecipient:
    """A BatchHandler (its contract: streams/recipients/__init__.py) for one declared recipient.

    `wanted` decides which events are this recipient's, from the event and its opened personal part; without it all are.
    """

    def __init__(
        self,
        declaration: RecipientDeclaration,
        database: RecipientDatabase,
        *,
        keys: CaseKeys,
        gateway_pool: asyncpg.Pool,
        metrics: RecipientMetrics,
        wanted: Wanted | None = None,
        deadline_s: float = 50.0,
        gateway_timeout_s: float = 5.0,
    ) -> None:
        self.name = declaration.recipient
        self._declaration = declaration
        self._database = database
        self._keys = keys
        self._gateway = gateway_pool
        self._metrics = metrics
        self._wanted = wanted
        self.deadline_s = deadline_s
        self._patience = Patience(search_s=deadline_s / 4, group_s=database.group_s)
        self._gateway_timeout_s = gateway_timeout_s

    async def on_assigned(self, fence: Fence) -> None:
        """Makes the new epochs known in the recipient's database, so that their former owner can write no more."""
        try:
            async with asyncio.timeout(self.deadline_s), self._database.connection() as connection:
                await register(connection, fence)
        except DATABASE_ERRORS as error:
            raise of_connector(error) from None

    async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
        """Applies what can be applied, then raises the first error of a case that could not be, with its case_id."""
        for error in (await self.apply_each(events, fence)).values():
            raise error

    async def apply_each(self, events: Sequence[CaseEvent], fence: Fence) -> Dictionary[UUID, Rejected | Retryable]:
        """Applies what can be applied and names the rest; raises Unavailable, Fenced or Misconfigured for all of it."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self.deadline_s):
                errors = await self._apply(events, fence)
        except TimeoutError as error:
            raise of_connector(error) from None
        self._metrics.applied(self.name, time.monotonic() - begun)
        return errors

    async def rehearse(self, events: Sequence[CaseEvent]) -> Dictionary[UUID, Rehearsal]:
        """What handling these events one after the other would do; raises as `apply_each` does, and writes nothing."""
        try:
            async with asyncio.timeout(self.deadline_s):
                ready = await self._database.ready()
                opened = await self._open(events)
                mine = [event for event in events if self._is_mine(event, opened[event.event_id])]
                async with self._database.connection() as connection:
                    found = await rehearsed(
                        connection, ready, mine, lambda event: _mapped(ready.mapping, event, opened[event.event_id])
                    )
        except DATABASE_ERRORS as error:
            raise of_connector(error) from None
        return {event.event_id: found.get(event.event_id, Rehearsal("elsewhere")) for event in events}

    async def _apply(self, events: Sequence[CaseEvent], fence: Fence) -> Dictionary[UUID, Rejected | Retryable]:
        ready = await self._database.ready()
        opened = await self._open(events)
        mine = [event for event in events if self._is_mine(event, opened[event.event_id])]
        self._metrics.pushed(self.name, "elsewhere", len(events) - len(mine))

        def map_event(event: CaseEvent) -> dict[str, Any]:
            return _mapped(ready.mapping, event, opened[event.event_id])

        choice = choose(mine, self._declaration.origin, map_event)
        held: Held = {}
        if choice.candidates or choice.echoes:
            reach("recipient.before_transaction")
            held = await self._write(ready, choice, map_event, fence)
            reach("recipient.after_commit")
        await self._link(ready.mapping, choice, held)
        reach("recipient.after_xref")
        self._count(mine, choice, sum(row.written for row in held.values()))
        return choice.errors

    async def _open(self, events: Sequence[CaseEvent]) -> dict[UUID, Opened | Rejected]:
        try:
            return await open_events(self._keys, self._gateway, events, timeout_s=self._gateway_timeout_s)
        except DATABASE_ERRORS as error:
            raise Unavailable(f"the gateway's database does not answer ({type(error).__name__})") from None

    def _is_mine(self, event: CaseEvent, opened: Opened | Rejected) -> bool:
        if event.case_type != self._database.mapping.case_type.name:
            return False
        if self._wanted is None:
            return True
        # What cannot be read may be ours: it is named with its error rather than silently passed over
        return isinstance(opened, Rejected) or self._wanted(event, opened.personal)

    async def _write(self, ready: Ready, choice: Choice, map_event: MapEvent, fence: Fence) -> Held:
        """One transaction at the recipient; a second one, row by row where needed, when a row was refused."""
        is_slow = False
        for halving in (False, True):
            try:
                async with self._database.connection() as connection, connection.transaction():
                    # a constraint that waits for the commit would fail us there, where no row can be named
                    await connection.execute("set constraints all immediate")
                    await hold(connection, fence)
                    push = Push(connection, ready.statements, choice, map_event)
                    held = await (push.one_by_one(self._patience, is_slow=is_slow) if halving else push.at_once())
                    reach("recipient.before_commit")
                return held
            except DATABASE_ERRORS as error:
                if isinstance(error, asyncpg.InvalidCachedStatementError):
                    self._database.forget()
                if halving or of_row(error) is None:
                    raise of_connector(error) from None
                is_slow = is_too_slow(error)
        raise AssertionError("the second round returns or raises")  # pragma: no cover

    async def _link(self, mapping: Mapping, choice: Choice, held: Held) -> None:
        try:
            await record(
                self._gateway,
                self.name,
                mapping.digest,
                _links(mapping, choice, held),
                timeout_s=self._gateway_timeout_s,
            )
        except DATABASE_ERRORS as error:
            raise Unavailable(f"the gateway's database does not answer ({type(error).__name__})") from None

    def _count(self, mine: Sequence[CaseEvent], choice: Choice, written: int) -> None:
        rejected = [error for error in choice.errors.values() if isinstance(error, Rejected)]
        for error in rejected:
            self._metrics.field_error(self.name, error.field)
        echoes = len(choice.echoes)
        self._metrics.pushed(self.name, "written", written)
        self._metrics.pushed(self.name, "echo", echoes)
        self._metrics.pushed(self.name, "rejected", len(rejected))
        self._metrics.pushed(self.name, "held", len(choice.errors) - len(rejected))
        self._metrics.pushed(self.name, "settled", len(mine) - written - echoes - len(choice.errors))


def _mapped(mapping: Mapping, event: CaseEvent, opened: Opened | Rejected) -> dict[str, Any]:
    if isinstance(opened, Rejected):
        raise opened
    document = mapping.case_type.join({**event.document, "status": event.status}, opened.personal)
    return mapping.forward(document, event, erased=opened.erased)


def _links(mapping: Mapping, choice: Choice, held: Held) -> list[Link]:
    """One link a case: parked when an event of it will never be taken, else where it was written."""
    status = None if mapping.status is None else mapping.status.column
    links = {event.case_id: Link(event.case_id, None, event.version, "applied") for event in choice.echoes}
    for candidate in choice.candidates:
        event = candidate.event
        row = held[event.reference]
        code = None if status is None else str(candidate.row[status])
        links[event.case_id] = Link(event.case_id, row.id, max(row.version, event.version), "applied", code)
    for event in choice.refused:
        if isinstance(choice.errors[event.event_id], Rejected):
            known = links.get(event.case_id, Link(event.case_id, None, event.version, "parked"))
            links[event.case_id] = replace(known, version=event.version, state="parked")
    return list(links.values())
