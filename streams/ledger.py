"""The ledger: performs planned effects, each once in effect, and says `unknown` where nobody can know.

An effect goes planned → intent (its bytes are rendered, sealed and stored) → one attempt after another → done or
failed. An attempt is `sending` until its sink asks for the commit point, then `committing`. What the death of a worker
leaves behind follows from that alone: before the commit point nothing happened, so the same stored bytes are performed
again; after it nobody knows, and the sink's class says what follows (effects.resolution).

The smallest windows that remain. Between the commit point and the act itself a dead worker leaves `unknown` although
nothing was sent; closing it would mean writing to two places at once. And a worker that is paused there, for longer
than a searchable provider is given to show the act, acts a second time when it wakes: its late answer is written down.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from uuid import UUID

import asyncpg
import orjson

from streams.audit import AuditLog
from streams.cases.keys import CaseKeys, Erased
from streams.effects.effect import HeldEffect, Verdict, bound_payload, bound_request
from streams.effects.governor import Governing, Governor
from streams.effects.inquiry import Inquiry
from streams.effects.metrics import EffectMetrics
from streams.effects.resolution import KEY_EXPIRED, LOST_AT_THE_ACT, Patience, asks, key_is_spent
from streams.effects.resolution import unknown as left_unknown
from streams.effects.settlement import AuditMissing, Settlement
from streams.effects.store import EffectStore, unknown
from streams.errors import Misconfigured
from streams.failpoints import reach
from streams.outages import DATABASE_AWAY
from streams.sealing import Sealer
from streams.sinks import Ambiguous, Keyed, LeaseLost, NotSent, Order, Searches, Sink, SinkClass

__all__ = ["Ledger", "Patience", "unknown"]

_log = logging.getLogger(__name__)
_KEY_TIMEOUT_S = 10.0
# What the database says to whoever would act while it may have lost what was done before.
_SHUT = "SG001"


class Ledger:
    """One worker's share of the effects. Any number of workers may run, each with an `owner` id of its own."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        keys: CaseKeys,
        sinks: Mapping[str, Sink],
        *,
        owner: UUID,
        lease_s: float,
        audit: AuditLog,
        metrics: EffectMetrics,
        width: int = 8,
        patience: Patience | None = None,
        governor: Governor | None = None,
        outcomes_topic: str | None = None,
    ) -> None:
        """Raises Misconfigured for a sink that lacks what its class promises."""
        for name, sink in sinks.items():
            _keeps_its_word(name, sink)
        self._pool = pool
        self._keys = keys
        self._sinks = dict(sinks)
        self._asked = [name for name, sink in sinks.items() if asks(sink)]
        self._lease_s = lease_s
        self._patience = patience or Patience()
        self._store = EffectStore(pool, owner, lease_s, outcomes_topic=outcomes_topic)
        self._settlement = Settlement(self._store, audit, metrics, self._patience)
        self._inquiry = Inquiry(self._store, self._settlement, metrics, self._patience)
        self._governing = None if governor is None else Governing(pool, governor)
        self._metrics = metrics
        self._width = width
        self._held: set[UUID] = set()
        self._freed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what is in hand. Cancelling leaves it to whoever adopts it."""
        async with asyncio.TaskGroup() as upkeep:
            chores = [upkeep.create_task(self._keep_leases()), upkeep.create_task(self._count())]
            async with asyncio.TaskGroup() as work:
                while not stop.is_set():
                    if not await self._take(work):
                        await self._idle()
            for chore in chores:
                chore.cancel()

    async def _take(self, work: asyncio.TaskGroup) -> int:
        free = self._width - len(self._held)
        if free <= 0:
            return 0
        try:
            claimed = await self._claim(free)
            if self._asked and len(claimed) < free:
                claimed += await self._store.claim_unknown(self._asked, list(self._held), free - len(claimed))
        except DATABASE_AWAY as error:
            _log.warning("ledger.database_away", extra={"error": type(error).__name__})
            return 0
        for effect in claimed:
            self._held.add(effect.effect_id)
            work.create_task(self._drive(effect))
        return len(claimed)

    async def _claim(self, limit: int) -> list[HeldEffect]:
        sinks, held = list(self._sinks), list(self._held)
        if self._governing is None:
            return await self._store.claim(sinks, held, limit)
        sinks = await self._governing.admitted(sinks)
        if not sinks:
            return []
        return await self._governing.claim(
            lambda connection, some, most: self._store.claim_on(connection, some, held, most), sinks, limit
        )

    async def _idle(self) -> None:
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.poll_s):
                await self._freed.wait()

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            # A lease that cannot be prolonged runs out, and another worker adopts the effect: nothing is lost by it.
            with suppress(*DATABASE_AWAY):
                if self._held:
                    await self._store.keep(list(self._held))

    async def _count(self) -> None:
        while True:
            # Gauges of a database that is away keep their last value; its absence shows elsewhere.
            with suppress(*DATABASE_AWAY):
                self._metrics.census(await self._store.census())
                if self._governing is not None:
                    held = await self._governing.held()
                    for sink in self._sinks:
                        self._metrics.holds(sink, held.get(sink, 0))
            await asyncio.sleep(self._patience.census_s)

    async def _drive(self, effect: HeldEffect) -> None:
        """Take one effect one step further. Whatever stops this leaves rows that an adopter understands."""
        try:
            if effect.state == "unknown":
                await self._inquiry.ask(effect, self._sinks[effect.sink], self._performed)
            elif not (effect.adopted and await self._adopt(effect)):
                await self._advance(effect)
        except LeaseLost:
            self._metrics.lease_lost(effect.sink)
            _log.warning("ledger.lease_lost", extra={"effect_id": str(effect.effect_id)})
        except (*DATABASE_AWAY, AuditMissing) as error:
            # The lease runs out, and the effect is adopted like that of a dead worker.
            cause = type(error).__name__
            _log.warning("ledger.effect_left", extra={"effect_id": str(effect.effect_id), "error": cause})
        except asyncpg.PostgresError as error:
            if error.sqlstate != _SHUT:
                raise
            _log.warning("ledger.gateway_shut", extra={"effect_id": str(effect.effect_id)})
        finally:
            self._held.discard(effect.effect_id)
            self._freed.set()

    async def _adopt(self, effect: HeldEffect) -> bool:
        """End the attempt that a lost worker left, by what it wrote down; False when it had not begun one."""
        left = await self._store.attempt(effect.effect_id, effect.attempt)
        if left is None:
            return False
        sink = self._sinks[effect.sink]
        if left.outcome is not None:
            await self._settlement.finish(effect, sink, left.number, Verdict(left.outcome, left.detail or ""))
        elif left.phase == "committing":
            await self._settlement.end(effect, sink, left.number, Verdict("unknown", LOST_AT_THE_ACT))
        else:
            await self._settlement.end(effect, sink, left.number, Verdict("not_sent", "worker_lost_before_the_act"))
        return True

    async def _advance(self, effect: HeldEffect) -> None:
        sink = self._sinks[effect.sink]
        if key_is_spent(sink, effect, self._patience):
            # Performed now, the provider might take it for a new one.
            await self._settlement.give(effect, effect.attempt, left_unknown(sink, KEY_EXPIRED))
            return
        try:
            request = await self._request(effect, sink)
        except NotSent as error:
            attempt = await self._store.begin(effect)
            await self._settlement.end(effect, sink, attempt, _refusal(error))
            return
        attempt = await self._store.begin(effect)
        reach("effect.after_sending")
        verdict = await self._perform(effect, sink, attempt, request)
        reach("effect.after_reply")
        await self._settlement.end(effect, sink, attempt, verdict)
        reach("effect.after_done")

    async def _performed(self, effect: HeldEffect) -> bytes:
        """Return the bytes that were performed; raises NotSent where they cannot be had."""
        return await self._request(effect, self._sinks[effect.sink])

    async def _request(self, effect: HeldEffect, sink: Sink) -> bytes:
        """Return the bytes to perform: those stored by an earlier attempt, else rendered and stored now."""
        try:
            async with asyncio.timeout(_KEY_TIMEOUT_S):
                sealer = await self._keys.of(self._pool, effect.case_id)
            return self._stored(effect, sealer) or await self._rendered(effect, sink, sealer)
        except Erased:
            raise NotSent("erased", permanent=True) from None
        except (NotSent, LeaseLost, *DATABASE_AWAY):
            raise
        except Exception as error:
            # A key ring without this key or a defect in a sink's rendering: mended, the effect goes on by itself.
            _log_defect(effect, error)
            raise NotSent(f"defect:{type(error).__name__}") from error

    def _stored(self, effect: HeldEffect, sealer: Sealer) -> bytes | None:
        if effect.request is None:
            return None
        request = sealer.open(effect.request, bound_to=bound_request(effect.effect_id))
        if hashlib.sha256(request).digest() != effect.request_sha256:
            raise NotSent("stored_bytes_differ", permanent=True)
        return request

    async def _rendered(self, effect: HeldEffect, sink: Sink, sealer: Sealer) -> bytes:
        reach("effect.after_plan")
        payload = orjson.loads(sealer.open(effect.payload, bound_to=bound_payload(effect.effect_id)))
        request = sink.render(Order(effect.effect_id, effect.case_id, effect.purpose, payload))
        sealed = sealer.seal(request, bound_to=bound_request(effect.effect_id))
        await self._store.intend(effect, sealed, hashlib.sha256(request).digest())
        reach("effect.after_intent")
        return request

    async def _perform(self, effect: HeldEffect, sink: Sink, attempt: int, request: bytes) -> Verdict:
        keyed = sink if sink.sink_class is SinkClass.KEYED and isinstance(sink, Keyed) else None
        gate = _Gate(self._store, effect.effect_id, attempt, None if keyed is None else keyed.key_life_s)
        try:
            async with asyncio.timeout(sink.timeout_s):
                if keyed is not None:
                    return Verdict("done", await keyed.perform(request, commit_point=gate, key=str(effect.effect_id)))
                return Verdict("done", await sink.perform(request, commit_point=gate))
        except LeaseLost:
            raise
        except NotSent as error:
            return _refusal(error)
        except Ambiguous as error:
            return Verdict("unknown", error.reason)
        except TimeoutError:
            return gate.verdict("timed_out")
        except Exception as error:  # noqa: BLE001 - see below
            # A sink's defect must not stop the other effects; what it means for this one depends on where it struck.
            _log_defect(effect, error)
            return gate.verdict(f"defect:{type(error).__name__}")


class _Gate:
    """The commit point of one attempt, and whether it was passed."""

    def __init__(self, store: EffectStore, effect_id: UUID, attempt: int, key_life_s: float | None) -> None:
        self._store = store
        self._key_life_s = key_life_s
        self._effect_id = effect_id
        self._attempt = attempt
        self._passed = False

    async def __call__(self) -> None:
        try:
            await self._store.commit_point(self._effect_id, self._attempt, self._key_life_s)
        except DATABASE_AWAY:
            # Whatever the row says now, this worker is alive and knows that it did not act.
            raise NotSent("database_away_at_the_commit_point") from None
        self._passed = True

    def verdict(self, reason: str) -> Verdict:
        """Say what an unexpected end means: nothing happened before the commit point, and nobody knows after it."""
        return Verdict("unknown" if self._passed else "not_sent", reason)


def _keeps_its_word(name: str, sink: Sink) -> None:
    if sink.sink_class is SinkClass.KEYED and not isinstance(sink, Keyed):
        raise Misconfigured(f"the sink {name} is of class keyed but has no key_life_s")
    if sink.sink_class is SinkClass.SEARCHABLE and not isinstance(sink, Searches):
        raise Misconfigured(f"the sink {name} is of class searchable but cannot find")


def _refusal(error: NotSent) -> Verdict:
    return Verdict("failed" if error.permanent else "not_sent", error.reason, error.retry_after)


def _log_defect(effect: HeldEffect, error: Exception) -> None:
    # Neither message nor traceback: either may quote the personal data that was being worked on.
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where is not None else "unknown"
    fields = {"effect_id": str(effect.effect_id), "error": type(error).__name__, "place": place}
    _log.error("ledger.defect", extra=fields)
