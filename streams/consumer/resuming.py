"""Tries parked cases again, in order, when somebody asks for it."""

import asyncio
import logging

from streams.consumer.dispatch import Dispatcher
from streams.consumer.fence import Fence
from streams.consumer.lanes import Verdict
from streams.consumer.limits import ConsumerLimits
from streams.consumer.parking import Parking, Requested
from streams.consumer.replay import ParkedEvent
from streams.errors import Rejected, Retryable, Unavailable, Undecodable
from streams.failpoints import reach
from streams.outages import DATABASE_ERRORS

log = logging.getLogger(__name__)


class Resumer:
    """Hands the events of one parked case after the other to the handler, oldest first.

    While it does, new events of that case are only appended to the list, so the handler sees one event of a case at a
    time. The case is un-parked when its list is empty under the row's lock, after its last event is done.
    """

    def __init__(self, dispatcher: Dispatcher, parking: Parking, *, group: str, limits: ConsumerLimits) -> None:
        self._dispatcher = dispatcher
        self._parking = parking
        self._group = group
        self._every_s = limits.resume_every_s
        self._retry = limits.retry

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                for requested in await self._parking.requested(list(self._dispatcher.epochs)):
                    await self._resume(requested)
            except DATABASE_ERRORS as error:
                # The request stays in its row: it is found again next time.
                log.warning("consumer.resume_failed", extra={"group": self._group, "error": type(error).__name__})

    async def _resume(self, requested: Requested) -> None:
        dispatcher, case_id, partition = self._dispatcher, requested.case_id, requested.partition
        dispatcher.resuming.add(case_id)
        try:
            while dispatcher.is_open and partition in dispatcher.epochs:
                dispatcher.begin()
                try:
                    if not await self._step(requested, dispatcher.fence([partition])):
                        return
                finally:
                    dispatcher.end()
        finally:
            dispatcher.resuming.discard(case_id)
            dispatcher.wake.set()

    async def _step(self, requested: Requested, held: Fence) -> bool:
        """One event, or the end of the list; whether there is more to do for this case now."""
        case_id, until = requested.case_id, requested.until
        head = await self._parking.head(case_id)
        if head is None:
            if await self._parking.unpark(case_id, held):
                self._dispatcher.parked.discard(case_id)
                return False
            return True
        if until is not None and head.position > until:
            await self._parking.rest(case_id, held)
            return False
        answer = await self._try(head, held)
        if answer is None:
            reach("consumer.after_resumed")
            await self._parking.handled(head.position, held)
            return True
        if isinstance(answer, Unavailable):
            return False
        spilled = requested.spilled
        if isinstance(answer, Retryable) and spilled is not None and spilled + 1 < self._retry.attempts:
            # It has attempts left: it was parked only because it was in the way.
            await self._parking.postpone(case_id, self._retry.delay_s(spilled, answer.retry_after), held)
            return False
        await self._parking.refuse(case_id, _verdict(answer), held)
        return False

    async def _try(self, head: ParkedEvent, held: Fence) -> Rejected | Retryable | Undecodable | None:
        if head.event is None:
            return head.problem
        return await self._dispatcher.caller.call_one(head.event, held)


def _verdict(answer: Rejected | Retryable | Undecodable) -> Verdict:
    if isinstance(answer, Undecodable):
        return Verdict(answer.stage, answer.field, answer.reason)
    return Verdict("handler", answer.field if isinstance(answer, Rejected) else None, answer.reason)
