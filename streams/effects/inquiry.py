"""Questions to a provider about an effect of which nobody knows whether it happened.

What it knows is done. What it does not know, asked twice with the time between that it needs to show an act, did not
happen: the stored bytes are performed again. An answer that means nothing is asked for again, ever more rarely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from streams.effects.effect import HeldEffect, Verdict
from streams.effects.metrics import EffectMetrics
from streams.effects.resolution import NOT_FOUND, Patience, age_s
from streams.effects.settlement import Settlement
from streams.effects.store import EffectStore
from streams.failpoints import reach
from streams.sinks import Answer, CannotTell, Found, NotFound, NotSent, Searches, Sink

_LONGEST_WAIT_S = 3600.0

StoredBytes = Callable[[HeldEffect], Awaitable[bytes]]


class Inquiry:
    """Asks for one worker."""

    def __init__(self, store: EffectStore, settlement: Settlement, metrics: EffectMetrics, patience: Patience) -> None:
        self._store = store
        self._settlement = settlement
        self._metrics = metrics
        self._patience = patience

    async def ask(self, effect: HeldEffect, sink: Sink, stored: StoredBytes) -> None:
        """Ask once, and do what follows. `stored` opens the bytes that were performed."""
        assert isinstance(sink, Searches)  # noqa: S101 - only such a sink's effects are claimed for asking
        attempts = await self._store.attempts(effect.effect_id)
        doubtful = next((one.number for one in attempts if one.outcome == "unknown"), None)
        if doubtful is None:
            # A worker was lost between the answer and what follows from it.
            left = next((one for one in attempts if one.outcome == "done"), attempts[0])
            verdict = Verdict(left.outcome or "not_sent", left.detail or "")
            await self._settlement.finish_resolved(effect, sink, left.number, verdict)
            return
        try:
            request = await stored(effect)
        except NotSent as error:
            # Erased, or damaged: nothing to ask with, now or later.
            wait_s = None if error.permanent else _LONGEST_WAIT_S
            await self._note(effect, sink, doubtful, CannotTell(error.reason))
            await self._store.ask_again(effect.effect_id, effect.attempt, wait_s)
            return
        answer = await _answer(effect, sink, request)
        reach("effect.after_find")
        not_found = await self._note(effect, sink, doubtful, answer)
        await self._follow(effect, sink, doubtful, answer, not_found)

    async def _follow(self, effect: HeldEffect, sink: Sink, attempt: int, answer: Answer, not_found: int) -> None:
        assert isinstance(sink, Searches)  # noqa: S101 - see ask
        match answer:
            case Found():
                await self._settlement.resolve(effect, sink, attempt, Verdict("done", answer.reference))
            case NotFound() if not_found >= 2:
                await self._settlement.resolve(effect, sink, attempt, Verdict("not_sent", NOT_FOUND))
            case NotFound():
                await self._store.ask_again(effect.effect_id, effect.attempt, sink.settle_lag_s)
            case CannotTell():
                waited_s = age_s(effect)
                wait_s = min(_LONGEST_WAIT_S, max(sink.settle_lag_s, self._patience.backoff_s, waited_s / 10))
                over = waited_s > self._patience.ask_for_s
                await self._store.ask_again(effect.effect_id, effect.attempt, None if over else wait_s)

    async def _note(self, effect: HeldEffect, sink: Sink, attempt: int, answer: Answer) -> int:
        match answer:
            case Found():
                self._metrics.checked(sink.name, "found")
                return await self._store.asked(effect.effect_id, attempt, "found", answer.reference)
            case NotFound():
                self._metrics.checked(sink.name, "not_found")
                return await self._store.asked(effect.effect_id, attempt, "not_found", None)
            case CannotTell():
                self._metrics.checked(sink.name, "cannot_tell")
                return await self._store.asked(effect.effect_id, attempt, "cannot_tell", answer.reason)


async def _answer(effect: HeldEffect, sink: Sink, request: bytes) -> Answer:
    assert isinstance(sink, Searches)  # noqa: S101 - see Inquiry.ask
    try:
        async with asyncio.timeout(sink.timeout_s):
            return await sink.find(effect.effect_id, request)
    except TimeoutError:
        return CannotTell("timed_out")
    except Exception as error:  # noqa: BLE001 - a sink's defect must not stop the other effects; it is asked again
        return CannotTell(f"defect:{type(error).__name__}")
