"""How the outcome of an attempt comes to count: on the attempt, in the audit trail, on the effect, in this order.

Each step is repeated through an outage, because only this worker knows the outcome. Should it die between two of them,
the attempt's row tells the adopter what is left to do. The audit row has a name that is taken once, so that an adopter
and a worker that wakes up late write it together: every attempt has one.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Protocol, TypeVar
from uuid import UUID

from streams.audit import AuditLog, Detail
from streams.effects.effect import HeldEffect, Verdict
from streams.effects.metrics import EffectMetrics
from streams.effects.resolution import Next, Patience, after, age_s
from streams.effects.store import EffectStore
from streams.failpoints import reach
from streams.outages import DATABASE_AWAY
from streams.sinks import Sink

ATTEMPT = "effect.attempt"
# Only for an attempt that was `unknown`, until its worker came back with the provider's answer, or somebody found out.
RESOLVED = "effect.resolved"

_log = logging.getLogger(__name__)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Step(Protocol[ResultT_co]):
    """One write of an outcome. `again`: an earlier try failed, or seemed to."""

    async def __call__(self, *, again: bool) -> ResultT_co: ...


class AuditMissing(Exception):
    """The audit trail did not take a row: what it describes does not count yet."""


class Settlement:
    """Ends attempts for one worker."""

    def __init__(self, store: EffectStore, audit: AuditLog, metrics: EffectMetrics, patience: Patience) -> None:
        self._store = store
        self._audit = audit
        self._metrics = metrics
        self._patience = patience

    async def end(self, effect: HeldEffect, sink: Sink, attempt: int, verdict: Verdict) -> None:
        """Make the outcome of an attempt count; raises LeaseLost when another worker has ended it already."""
        action = await self._conclude(effect, attempt, verdict)
        self._metrics.ended(effect.sink, verdict.outcome)
        reach("effect.after_conclude")
        await self._count(effect, sink, attempt, verdict, action)

    async def finish(self, effect: HeldEffect, sink: Sink, attempt: int, verdict: Verdict) -> None:
        """Do what is left of an attempt whose outcome is written, for a worker that did not get further."""
        await self._count(effect, sink, attempt, verdict, ATTEMPT)

    async def resolve(self, effect: HeldEffect, sink: Sink, attempt: int, verdict: Verdict) -> None:
        """Make count what a provider said of an unknown attempt; raises LeaseLost when it is no longer unknown."""

        async def step(*, again: bool) -> None:
            if not (again and await self._is_written(effect, attempt, verdict)):
                await self._store.resolve(effect, attempt, verdict)

        await self._through_outage(step)
        reach("effect.after_resolve")
        await self.finish_resolved(effect, sink, attempt, verdict)

    async def finish_resolved(self, effect: HeldEffect, sink: Sink, attempt: int, verdict: Verdict) -> None:
        """Do what is left of an answer that is written, for a worker that did not get further."""
        await self._count(effect, sink, attempt, verdict, RESOLVED)

    async def give(self, effect: HeldEffect, attempt: int, then: Next) -> None:
        """Give an effect, whose last attempt it names, the state that follows, through an outage."""

        async def step(*, again: bool) -> None:  # noqa: ARG001 - writing the same state twice changes nothing
            if await self._store.settle(effect.effect_id, attempt, then):
                self._metrics.published()

        await self._through_outage(step)

    async def _conclude(self, effect: HeldEffect, attempt: int, verdict: Verdict) -> str:
        async def step(*, again: bool) -> str:
            # The write that seemed to fail may have been committed, and only its answer lost.
            if again and await self._is_written(effect, attempt, verdict):
                # Told already with another outcome: it was taken for lost, and this is the answer after all.
                told = await self._store.audited(ATTEMPT, effect, attempt)
                return ATTEMPT if told in (None, verdict.outcome) else RESOLVED
            before = await self._store.conclude(effect.effect_id, attempt, verdict)
            return ATTEMPT if before is None else RESOLVED

        return await self._through_outage(step)

    async def _is_written(self, effect: HeldEffect, attempt: int, verdict: Verdict) -> bool:
        left = await self._store.attempt(effect.effect_id, attempt)
        return left is not None and (left.outcome, left.detail) == (verdict.outcome, verdict.detail)

    async def _count(self, effect: HeldEffect, sink: Sink, attempt: int, verdict: Verdict, action: str) -> None:
        async def row(*, again: bool) -> None:  # noqa: ARG001 - the second of two rows of one name is not written
            await self._record(effect, attempt, verdict, action)

        await self._through_outage(row)
        # What is resolved leaves no doubt: nor is there anything that another attempt would have to wait for.
        known = replace(effect, doubted=effect.doubted and action == ATTEMPT)
        then = after(sink, known, attempt, verdict, self._patience)
        if action == RESOLVED and then.state == "again":
            then = replace(then, delay_s=0.0)
        # What is resolved may be an attempt before the last: the last was surely not sent.
        await self.give(effect, attempt if action == ATTEMPT else max(attempt, effect.attempt), then)
        if verdict.outcome == "done":
            self._metrics.took(effect.sink, age_s(effect))

    async def _record(self, effect: HeldEffect, attempt: int, verdict: Verdict, action: str) -> None:
        detail: Detail = {
            "effect_id": str(effect.effect_id),
            "sink": effect.sink,
            "purpose": effect.purpose,
            "attempt": attempt,
            "detail": verdict.detail,
        }
        try:
            await self._audit.record(
                actor="ledger",
                action=action,
                subject=str(effect.case_id),
                outcome=verdict.outcome,
                correlation_id=effect.correlation_id,
                detail=detail,
                once=once(action, effect.effect_id, attempt, verdict.outcome),
            )
        except Exception as error:
            # Whatever kept the row out, the outcome does not count without it: repeated here, then by an adopter.
            raise AuditMissing from error

    async def _through_outage(self, step: Step[ResultT_co]) -> ResultT_co:
        """Repeat a step until it succeeds or patience ends; only this worker knows the outcome it carries."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience.settle_s
        again = False
        while True:
            try:
                return await step(again=again)
            except (*DATABASE_AWAY, AuditMissing) as error:
                _log.warning("ledger.outcome_waits", extra={"error": type(error).__name__})
                if clock() >= deadline:
                    raise
            again = True
            await asyncio.sleep(self._patience.poll_s)


def once(action: str, effect_id: UUID, attempt: int, outcome: str) -> str:
    """Return the name of an audit row. An attempt ends once; what it is resolved to may be corrected later."""
    name = f"{action}:{effect_id}:{attempt}"
    return name if action == ATTEMPT else f"{name}:{outcome}"
