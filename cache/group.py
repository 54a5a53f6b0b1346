"""One lookup: parameters in, an honest answer out. The whole read path is `Group.answer`."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from cache.answer import Answer, AsOf, Source, Verdict
from cache.definition import LookupDefinition, check_tags, compile_one, compile_sql
from cache.entry import Broken, Codec, Entry
from cache.feed import L1
from cache.found import Found, Kept, Looked
from cache.loaded import Loaded
from cache.loader import Caller, NotPrepared, SiloUnavailable
from cache.metrics import CacheMetrics
from cache.question import Question, Questions
from cache.reads import Reading
from cache.seal import KeyRing
from cache.silo import Silo
from cache.standing import Standing
from cache.state import Position, State
from cache.store import Fill, Store
from cache.tally import Count, Spread

__all__ = ["Answer", "AsOf", "Group", "Looked"]

# How long a caller waits for the silo when there is an answer past its TTL to fall back on.
_PATIENCE_S = 0.5
_RECENT = 256
# How much later than its time an answer becomes too old: the clock is not read for each.
_MOMENT_MS = 10.0
_Judged = tuple[Verdict, str | None]


class Group:
    """Answers one lookup out of Redis, or out of the silo; any number of callers may ask at once.

    Raises InvalidLookup when the definition does not fit the silo. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        definition: LookupDefinition,
        silo: Silo,
        store: Store,
        ring: KeyRing,
        metrics: CacheMetrics,
        *,
        l1: L1 | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_tags(definition, silo.tagger)
        _, self.batch_sql = compile_sql(definition)
        self.one_sql = compile_one(definition)
        # False where asking for many at once is slower than asking for each: `cache/examine` finds out.
        self.batched = True
        # The last questions that the silo was asked: the sentinel asks some of them again.
        self.recent: deque[Question] = deque(maxlen=_RECENT)
        self.definition = definition
        self._silo = silo
        self._store = store
        self._ring = ring
        self._metrics = metrics
        self._clock = clock
        self._codec = Codec(definition.name, ring, personal=definition.personal)
        self.question = Questions(definition, silo.tagger, ring).of
        self._hash = definition.hash.encode()
        self._tables = tuple(definition.tags)
        # A personal answer is not kept in the clear where nobody asked for it.
        self._l1 = None if definition.personal else l1
        self._counted: dict[tuple[Source, str], tuple[Count, Spread]] = {}
        # The verdict on what was found: at which position, by which standing of the silo, and until when it is taken.
        self._positive: tuple[str, int, Standing | None, float, _Judged | None] = ("", -1, None, 0.0, None)
        self._shown: tuple[State | None, AsOf] = (None, AsOf(silo.name, "none", 0))
        self._shown_loaded: tuple[float, AsOf] = (0.0, self._shown[1])

    async def answer(
        self, parameters: Mapping[str, object], *, timeout_s: float, min_as_of: AsOf | None = None
    ) -> Answer:
        """The answer to normalised parameters within `timeout_s`, at least as new as `min_as_of` if the silo is.

        Raises SiloUnavailable when nothing could answer in time. A verdict of `cannot_tell` is an answer.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        started = time.perf_counter()
        question = self.question(parameters)
        wanted = min_as_of if min_as_of is not None and min_as_of.silo == self._silo.name else None
        answer = self.at_hand(question, wanted)
        if answer is not None:
            return answer
        try:
            async with asyncio.timeout_at(deadline):
                reading = await self._store.read(question.digest, question.tags)
        except TimeoutError:
            reading = None
        return await self._finish(self.weigh(question, reading, started), wanted, deadline)

    # The same in steps, for a caller that does not wait where there is nothing to wait for

    def at_hand(self, question: Question, wanted: AsOf | None = None) -> Answer | None:
        """The answer, if this process has it."""
        if self._l1 is None:
            return None
        started = time.perf_counter()
        held = self._l1.get(question.digest)
        if held is None or (wanted is not None and not wanted.met_by(held.state.epoch, held.state.seq)):
            return None
        return self._hit(question, held.entry, held.state, started)

    def begin(self, question: Question, told: Callable[[Reading | None], None]) -> bool:
        """Ask Redis; `told`, which must not raise, gets the reading later. False when Redis is no help now."""
        return self._store.begin_read(question.digest, question.tags, told)

    def weigh(self, question: Question, reading: Reading | None, started: float) -> Looked:
        """What the reading is worth."""
        if reading is None or reading.state is None:
            return Looked(question, started)
        state = reading.state
        if state.position.definition != self._silo.tagger.definition:
            # The tags in Redis were made in another way: they say nothing about ours.
            return Looked(question, started)
        if reading.raw is None:
            return self._missed(question, reading, state, started)
        try:
            entry = self._codec.unpack(reading.raw, reading.key)
        except Broken as broken:
            self._metrics.broken.labels(self.definition.name, broken.reason).inc()
            # a copy: the same question may be asked again, when what Redis holds is sound
            return Looked(replace(question, replace=True), started, state)
        if entry.seq < reading.newest:
            return self._missed(question, reading, state, started)
        if self._l1 is not None:
            self._l1.keep(question.digest, question.tags, entry, state)
        return Looked(question, started, state, entry)

    def _missed(self, question: Question, reading: Reading, state: State, started: float) -> Looked:
        """Without an entry, but perhaps with what landed a moment ago. Tags say nothing without the epoch's mark."""
        landed = self._silo.loader.landed
        loaded = landed.get(question.digest, state.epoch, reading.newest) if reading.guarded else None
        return Looked(question, started, state, loaded=loaded)

    def begin_load(self, looked: Looked, told: Callable[[Loaded | Exception], None]) -> Caller | None:
        """Ask the silo what Redis has no answer to; `told`, which must not raise, gets what it says later.

        None where it takes a caller that can wait.
        """
        if looked.entry is not None or looked.loaded is not None:
            return None
        at_least = looked.state.position if looked.state is not None else None
        try:
            return self._silo.loader.begin(self, looked.question, told, at_least=at_least)
        except SiloUnavailable as error:
            looked.loaded = error
            return None

    def settle(self, looked: Looked) -> Answer | None:
        """The answer, if it is a hit or was loaded, and nothing has to be found out before its verdict."""
        question = looked.question
        if isinstance(looked.loaded, Loaded):
            found = self._from_loaded(looked.loaded, looked.source)
            judged = self._judge_now(question, found.epoch, found.seq, found.negative, self._store.now_ms())
            return None if judged is None else self._answer(found, *judged, found.age_ms, looked.started)
        if looked.entry is None or looked.state is None:
            return None
        return self._hit(question, looked.entry, looked.state, looked.started)

    async def resume(self, looked: Looked, *, timeout_s: float) -> Answer:
        """The answer where it takes more than that; as `answer`."""
        return await self._finish(looked, None, asyncio.get_running_loop().time() + timeout_s)

    async def _finish(self, looked: Looked, wanted: AsOf | None, deadline: float) -> Answer:
        question, state = looked.question, looked.state
        kept = None if state is None or looked.entry is None else Kept(looked.entry, state)
        if kept is not None and wanted is not None and not wanted.met_by(kept.state.epoch, kept.state.seq):
            kept = None
        if kept is not None:
            answer = self._hit(question, kept.entry, kept.state, looked.started)
            if answer is not None:
                return answer
        if kept is not None and self._is_fresh(kept.entry):
            found = self._from_kept(kept, "hit")
        else:
            try:
                found = await self._found(looked, kept, wanted, deadline)
            except NotPrepared:
                return self._not_prepared(looked.started)
            except SiloUnavailable:
                self._metrics.unanswered.labels(self.definition.name).inc()
                raise
        return await self._judged(found, question, deadline, looked.started)

    def _hit(self, question: Question, entry: Entry, state: State, started: float) -> Answer | None:
        """The answer out of a valid entry; None when its time is over, or the verdict has to wait."""
        now_ms = self._store.now_ms()
        if now_ms is None or now_ms >= entry.fresh_ms:
            return None
        judged = self._judge_now(question, state.position.epoch, state.position.seq, entry.negative, now_ms)
        if judged is None:
            return None
        if now_ms >= entry.soft_ms:
            self._silo.loader.refresh(self, question, at_least=state.position)
        verdict, reason = judged
        age_ms = max(now_ms - state.time_ms, 0.0)
        self._count("hit", verdict, started)
        etag = f'W/"{entry.etag:016x}{verdict[0]}"'
        return Answer(
            verdict, entry.body, self._as_of(state), etag, age_ms / 1000, int(age_ms) + 1, "hit", reason
        )  # fmt: skip

    def _judge_now(
        self, question: Question, epoch: str, seq: int, negative: bool, now_ms: float | None
    ) -> _Judged | None:
        """What the silo says of one that is not negative it says of all of them at a position: their tags do not
        count. So it is asked once a moment, and again once the silo was looked at.
        """
        standing, (at_epoch, at_seq, by, until_ms, judged) = self._silo.standing, self._positive
        if negative or now_ms is None:
            return self._asked_now(question, epoch, seq, negative)
        if at_seq != seq or at_epoch != epoch or by is not standing or now_ms >= until_ms:
            judged = self._asked_now(question, epoch, seq, negative)
            self._positive = epoch, seq, standing, now_ms + _MOMENT_MS, judged
        return judged

    def _asked_now(self, question: Question, epoch: str, seq: int, negative: bool) -> _Judged | None:
        return self._silo.judge_now(
            negative=negative,
            epoch=epoch,
            seq=seq,
            tags=question.tags,
            tables=self._tables,
            max_age_s=self.definition.max_age_s,
        )

    def _as_of(self, state: State) -> AsOf:
        """The same object while the state is: it is shown with every answer."""
        shown, as_of = self._shown
        if state is not shown:
            time_of = dt.datetime.fromtimestamp(state.time_ms / 1000, dt.UTC)
            as_of = AsOf(self._silo.name, state.epoch, state.seq, time_of)
            self._shown = state, as_of
        return as_of

    # Redis

    def keep(self, question: Question, loaded: Loaded) -> None:
        """Offer Redis what the silo answered."""
        self.recent.append(question)
        now_ms = self._store.now_ms()
        if now_ms is None or loaded.position.definition != self._silo.tagger.definition:
            self._metrics.fills.labels(self._silo.name, "definition" if now_ms is not None else "dropped").inc()
            return
        definition = self.definition
        negative = loaded.body == b"[]"
        if negative and not self._silo.negatives.allow():
            self._metrics.fills.labels(self._silo.name, "negative_capped").inc()
            return
        ttl_s = min(definition.ttl_s, definition.negative_ttl_s) if negative else definition.ttl_s
        soft_s = min(definition.soft_ttl_s, ttl_s)
        entry = Entry(
            seq=loaded.position.seq,
            committed_ms=int(loaded.applied_at.timestamp() * 1000),
            soft_ms=int(now_ms + soft_s * 1000),
            fresh_ms=int(now_ms + ttl_s * 1000),
            etag=self._etag(loaded),
            negative=negative,
            body=loaded.body,
        )
        key = self._store.entry_key(loaded.position.epoch, question.digest)
        life_ms = int((ttl_s + definition.stale_for_s) * 1000)
        value = self._codec.pack(entry, key)
        self._store.offer(Fill(loaded.position, key, value, question.tags, life_ms, question.replace))

    def _is_fresh(self, entry: Entry) -> bool:
        now_ms = self._store.now_ms()
        return now_ms is not None and now_ms < entry.fresh_ms

    def _from_kept(self, kept: Kept, source: Source) -> Found:
        entry, state = kept.entry, kept.state
        age_ms = (self._store.now_ms() or state.time_ms) - state.time_ms
        return Found(
            entry.body, entry.negative, entry.etag, state.epoch, state.seq, state.time_ms, age_ms, True, source
        )  # fmt: skip

    # The silo

    async def _found(self, looked: Looked, kept: Kept | None, wanted: AsOf | None, deadline: float) -> Found:
        if isinstance(looked.loaded, Exception):
            raise looked.loaded
        if looked.loaded is not None and (wanted is None or _meets(looked.loaded.position, wanted)):
            return self._from_loaded(looked.loaded, looked.source)
        return await self._load(looked.question, looked.state, kept, wanted, deadline)

    async def _load(
        self, question: Question, state: State | None, kept: Kept | None, wanted: AsOf | None, deadline: float
    ) -> Found:
        """Ask the silo; an entry past its TTL is served instead, marked stale, when that fails or takes long."""
        at_least = state.position if state is not None else None
        limit = deadline if kept is None else min(deadline, asyncio.get_running_loop().time() + _PATIENCE_S)
        # What Redis does not know of yet, a replica hardly does either.
        primary = wanted is not None and not (state is not None and wanted.met_by(state.epoch, state.seq))
        try:
            async with asyncio.timeout_at(limit):
                loaded = await self._silo.loader.load(self, question, at_least=at_least, primary=primary)
                if wanted is not None and not primary and not _meets(loaded.position, wanted):
                    primary = True
                    loaded = await self._silo.loader.load(self, question, primary=True)
                if wanted is not None and loaded.position.epoch == wanted.epoch and not _meets(loaded.position, wanted):
                    # That query had begun before the change that the caller knows of; the next one begins now.
                    loaded = await self._silo.loader.load(self, question, primary=True)
        except (TimeoutError, SiloUnavailable) as error:
            if kept is not None:
                return self._from_kept(kept, "stale")
            raise error if isinstance(error, SiloUnavailable) else SiloUnavailable("the deadline passed") from None
        return self._from_loaded(loaded, "bypass" if state is None or primary else "miss")

    def _from_loaded(self, loaded: Loaded, source: Source) -> Found:
        """How new a snapshot is: the primary's is of its own moment; a replica's has at least what Redis knows of."""
        position = loaded.position
        if loaded.from_primary:
            as_of_ms, measured = loaded.now.timestamp() * 1000, True
            # Not by the two clocks: one that runs ahead of ours would make any answer new.
            age_ms = (time.monotonic() - loaded.sent) * 1000
        else:
            latest, now_ms = self._store.latest, self._store.now_ms()
            measured = latest is not None and position.epoch == latest.epoch and position.seq >= latest.seq
            if measured and latest is not None and now_ms is not None:
                as_of_ms, age_ms = latest.time_ms, now_ms - latest.time_ms
            else:
                as_of_ms = loaded.applied_at.timestamp() * 1000
                age_ms = self._clock() * 1000 - as_of_ms
        negative = loaded.body == b"[]"
        etag = self._etag(loaded)
        return Found(loaded.body, negative, etag, position.epoch, position.seq, as_of_ms, age_ms, measured, source)

    # The answer

    async def _judged(self, found: Found, question: Question, deadline: float, started: float) -> Answer:
        asked = time.perf_counter()
        verdict, reason = await self._silo.judge(
            negative=found.negative,
            epoch=found.epoch,
            seq=found.seq,
            tags=question.tags,
            tables=self._tables,
            max_age_s=self.definition.max_age_s,
            deadline=deadline,
        )
        # a verdict that had to wait for another look at the silo has aged the answer
        age_ms = max(found.age_ms, 0.0) + (time.perf_counter() - asked) * 1000
        return self._answer(found, verdict, reason, age_ms, started)

    def _answer(self, found: Found, verdict: Verdict, reason: str | None, age_ms: float, started: float) -> Answer:
        self._count(found.source, verdict, started)
        age_ms = max(age_ms, 0.0)
        return Answer(
            verdict,
            found.body,
            self._as_of_found(found),
            f'W/"{found.etag:016x}{verdict[0]}"',
            age_ms / 1000,
            int(age_ms) + 1 if found.measured else None,
            found.source,
            reason,
        )

    def _as_of_found(self, found: Found) -> AsOf:
        """The same object while position and time are: all answers of one query have them in common."""
        as_of_ms, as_of = self._shown_loaded
        if as_of_ms != found.as_of_ms or as_of.seq != found.seq or as_of.epoch != found.epoch:
            time_of = dt.datetime.fromtimestamp(found.as_of_ms / 1000, dt.UTC)
            as_of = AsOf(self._silo.name, found.epoch, found.seq, time_of)
            self._shown_loaded = found.as_of_ms, as_of
        return as_of

    def _not_prepared(self, started: float) -> Answer:
        self._count("bypass", "cannot_tell", started)
        as_of = AsOf(self._silo.name, "none", 0)
        return Answer("cannot_tell", b"[]", as_of, 'W/"none"', 0.0, None, "bypass", "not_loaded")

    def _count(self, source: Source, verdict: str, started: float) -> None:
        counted = self._counted.get((source, verdict))
        if counted is None:
            name = self.definition.name
            answers, seconds = self._metrics.answers.labels(name, source, verdict), self._metrics.seconds
            counted = self._counted[source, verdict] = answers, seconds.labels(name, source)
        counted[0].inc()
        counted[1].observe(time.perf_counter() - started)

    def _etag(self, loaded: Loaded) -> int:
        if loaded.etag is None:
            if self.definition.personal:
                # What is cheaper, kept beside a personal answer in the clear, would let some test a guess.
                loaded.etag = int.from_bytes(self._ring.hmac(b"etag", self._hash, loaded.body)[:8], "big")
            else:
                loaded.etag = self._ring.mark(self._hash, loaded.body)
        return loaded.etag


def _meets(position: Position, wanted: AsOf) -> bool:
    return wanted.met_by(position.epoch, position.seq)
