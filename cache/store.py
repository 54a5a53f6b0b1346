"""One silo's entries, tags and state in Redis, under the protocol of validated reads.

The scripts decide; this file only carries. What they promise is written in them and in the architecture, section 5.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, OutOfMemoryError

from cache.batch import Batcher, Sizes
from cache.definition import LONGEST_LIFE_S
from cache.link import RedisLink, RedisSkipped
from cache.metrics import CacheMetrics
from cache.state import Position, State
from cache.wire import Command

RETENTION_S = 2 * LONGEST_LIFE_S
LARGEST_ENTRY = 1 << 20
_KEYS_A_BATCH = 200
_WAITING_READS = 20_000
_FILLS_A_BATCH = 50
_WAITING_FILLS = 2_000
# All the fills of a batch are sent within _SCRIPT_TIMEOUT_S, or none of them counts.
_BYTES_A_BATCH = 4 << 20
_WAITING_BYTES = 32 << 20
_FEED_LENGTH = 1_000
_SCRIPT_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Reading:
    """What one round trip found of an entry. `raw` is None when there is none that may count.

    `newest` is the seq of the last change that touched one of its tags, which means that only while they are `guarded`:
    the mark of the epoch stands with them.
    """

    state: State | None
    key: bytes
    raw: bytes | None
    newest: float
    guarded: bool


@dataclass(slots=True)
class Fill:
    """An answer offered to Redis: `value` was packed for `key` of this position's epoch."""

    position: Position
    key: bytes
    value: bytes
    tags: tuple[str, ...]
    life_ms: int
    replace: bool


# Digest, tags, and whom to tell.
_Ask = tuple[str, tuple[str, ...], Callable[[Reading | None], None]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One reply, by key and tag. `newest` lacks the tags that no change has touched. `keys` are those of the asks."""

    state: State | None
    guarded: bool
    keys: list[bytes]
    entries: dict[bytes, bytes | None]
    newest: dict[str, float]


class Store:
    """The cache of one silo. Reading and filling need `run`; what Redis fails to do is a miss and never an error.

    `definition` is this process's own digest of indexes, normalisers and HMAC key. `latest` is the newest state that
    any reply has shown.
    """

    def __init__(
        self,
        silo: str,
        definition: str,
        link: RedisLink,
        metrics: CacheMetrics,
        *,
        retention_s: float = RETENTION_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.silo = silo
        self.definition = definition
        self.latest: State | None = None
        self._raw_state: bytes | None = None
        self._link = link
        self._metrics = metrics
        self._clock = clock
        self._retention_ms = int(retention_s * 1000)
        self._prefix = f"silogate:{{{silo}}}:"
        self._keys = [self._prefix + name for name in ("state", "tags", "floor", "samples", "feed", "epochs")]
        self._epoch = "-"
        self._clock_ahead_ms: float | None = None
        self._no_fills_until = 0.0
        self._counted: dict[str, Counter] = {}
        self._reads: Batcher[None, _Ask] = Batcher(
            self._serve_reads, workers=2, most=_KEYS_A_BATCH, waiting=_WAITING_READS
        )
        self._fills: Batcher[None, Fill] = Batcher(
            self._serve_fills,
            workers=1,
            most=_FILLS_A_BATCH,
            waiting=_WAITING_FILLS,
            sizes=Sizes(lambda fill: len(fill.value), _BYTES_A_BATCH, _WAITING_BYTES),
        )

    async def run(self) -> None:
        """Serve reads and fills until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reads.run())
            tasks.create_task(self._fills.run())

    def entry_key(self, epoch: str, digest: str) -> bytes:
        """Where the entry of a question lies."""
        return (self.entries_of(epoch) + digest).encode()

    def entries_of(self, epoch: str) -> str:
        """What the keys of an epoch's entries begin with."""
        return f"{self._prefix}lk:{epoch}:"

    def now_ms(self) -> float | None:
        """Redis's clock, or None before the first reply; never behind it by more than a failover's difference."""
        return None if self._clock_ahead_ms is None else self._clock() * 1000 + self._clock_ahead_ms

    async def read(self, digest: str, tags: tuple[str, ...]) -> Reading | None:
        """The entry of a key, validated against its tags in the same round trip; None while Redis is no help."""
        answered: asyncio.Future[Reading | None] = asyncio.get_running_loop().create_future()

        def tell(reading: Reading | None) -> None:
            if not answered.done():
                answered.set_result(reading)

        return await answered if self.begin_read(digest, tags, tell) else None

    def begin_read(self, digest: str, tags: tuple[str, ...], told: Callable[[Reading | None], None]) -> bool:
        """The same for a caller that does not wait: `told`, which must not raise, gets the reading later, once.

        False when nothing was asked.
        """
        if self._link.skipped:
            self._metrics.redis_skipped.inc()
            return False
        if not self._reads.put(None, (digest, tags, told)):
            self._metrics.overloaded.labels(self.silo).inc()
            return False
        return True

    def offer(self, fill: Fill) -> None:
        """Keep an answer if that is still right when Redis sees it. Returns at once and promises nothing."""
        if fill.life_ms < 1 or len(fill.value) > LARGEST_ENTRY:
            self._count_fill("not_kept")
        elif self._link.skipped or self._clock() < self._no_fills_until or not self._fills.put(None, fill):
            self._count_fill("dropped")

    # Reading

    async def _serve_reads(self, _group: None, asks: list[_Ask]) -> None:
        epoch = self._epoch
        try:
            seen = await self._look(epoch, asks)
            if seen.state is not None and seen.state.epoch != epoch:
                self._metrics.epoch_retries.labels(self.silo).inc()
                epoch = self._epoch = seen.state.epoch
                seen = await self._look(epoch, asks)
        except RedisSkipped:
            for _, _, told in asks:
                told(None)
            return
        # If an epoch began between the two looks, its keys were not asked for: there is no entry.
        usable = seen.guarded and seen.state is not None and seen.state.epoch == epoch
        state, entries, newest_of = seen.state, seen.entries, seen.newest
        for key, (_, tags, told) in zip(seen.keys, asks, strict=True):
            newest = -1.0
            if newest_of:
                for tag in tags:
                    newest = max(newest, newest_of.get(tag, -1.0))
            told(Reading(state, key, entries[key] if usable else None, newest, usable))

    async def _look(self, epoch: str, asks: Sequence[_Ask]) -> _Seen:
        """One round trip: state first, then entries, then tags, so that nothing applied in between is overlooked.

        The epoch's mark is asked for with the tags: a reply without it has the tags of another epoch, or none.
        """
        prefix = self.entries_of(epoch)
        keys = [(prefix + digest).encode() for digest, _, _ in asks]
        asked = dict.fromkeys(keys)
        tags = dict.fromkeys([tag for _, tags, _ in asks for tag in tags])
        sent = self._clock()
        clock, raw, entries, (mark, *scores) = await self._link.ask(
            [("TIME",), ("GET", self._keys[0]), ("MGET", *asked), ("ZMSCORE", self._keys[1], f"={epoch}", *tags)]
        )
        self._set_clock(sent, (int(clock[0]), int(clock[1])))
        if raw != self._raw_state:
            # the same object as long as Redis says the same: who shows it need not make it again either
            self._raw_state, self.latest = raw, State.parse(raw)
        return _Seen(
            self.latest,
            mark is not None,
            keys,
            dict(zip(asked, entries, strict=True)),
            {tag: float(score) for tag, score in zip(tags, scores, strict=True) if score is not None},
        )

    def _set_clock(self, sent: float, clock: tuple[int, int]) -> None:
        # Reckoned from before the question left, so that what is made of it is never behind Redis's own clock.
        self._clock_ahead_ms = clock[0] * 1000 + clock[1] / 1000 - sent * 1000

    # Filling

    async def _serve_fills(self, _group: None, fills: list[Fill]) -> None:
        try:
            commands = [self._command(fill) for fill in fills]
            outcomes = await self._link.send(commands, _FILL.text, timeout_s=_SCRIPT_TIMEOUT_S)
        except RedisSkipped:
            outcomes = [b"dropped"] * len(fills)
        for outcome in outcomes:
            if isinstance(outcome, OutOfMemoryError):
                self._no_fills_until = self._clock() + 1.0
                self._metrics.redis_errors.labels("full").inc()
                self._count_fill("full")
            else:
                self._count_fill(outcome.decode())

    def _command(self, fill: Fill) -> Command:
        state, tags, floor = self._keys[:3]
        at = fill.position
        life_ms = min(fill.life_ms, self._retention_ms // 2)
        return (
            "EVALSHA", _FILL.sha, 4, state, tags, floor, fill.key,
            at.epoch, at.seq, at.definition, life_ms, int(fill.replace), fill.value, *fill.tags,
        )  # fmt: skip

    def _count_fill(self, outcome: str) -> None:
        count = self._counted.get(outcome)
        if count is None:
            count = self._counted[outcome] = self._metrics.fills.labels(self.silo, outcome)
        count.inc()

    # What an invalidator does

    async def look(self) -> tuple[bytes | None, int]:
        """The state as it stands, and Redis's clock from before it was read; raises RedisSkipped."""

        async def work(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.execute_command("TIME")
                pipe.execute_command("GET", self._keys[0])
                return await pipe.execute()

        sent = self._clock()
        clock, raw = await self._link.call(work, timeout_s=_SCRIPT_TIMEOUT_S)
        self._set_clock(sent, clock)
        return raw, clock[0] * 1000 + clock[1] // 1000

    async def apply(self, expected: Position, seq: int, row_id: str, tags: Sequence[str]) -> str:
        """`applied`; `moved` if the state is no longer at `expected`; `lost` if the tags are gone."""
        return await self._run(_APPLY, 5, expected.expected, seq, row_id, self._retention_ms, _FEED_LENGTH, *tags)

    async def begin_epoch(self, expected: bytes, position: Position, server: str, time_ms: int) -> str:
        """`begun`; `moved` if the state no longer begins with `expected` (empty: there is none); or `used`."""
        words = (position.epoch, position.seq, position.id, position.definition, server, time_ms)
        return await self._run(_EPOCH, 6, expected, *words, self._retention_ms, _FEED_LENGTH)

    async def beat(self, expected: Position, time_ms: int) -> str:
        """`beaten`, or `moved`. Only for a time at which `expected` was the primary's newest position."""
        return await self._run(_BEAT, 1, expected.expected, time_ms)

    async def _run(self, script: _Script, keys: int, *arguments: bytes | str | int) -> str:
        async def work(redis: Redis) -> bytes:
            used = (keys, *self._keys[:keys], *arguments)
            try:
                return await _execute(redis, "EVALSHA", script.sha, *used)
            except NoScriptError:
                return await _execute(redis, "EVAL", script.text, *used)

        return (await self._link.call(work, timeout_s=_SCRIPT_TIMEOUT_S)).decode()


async def _execute(redis: Redis, *command: bytes | str | int) -> bytes:
    return bytes(await redis.execute_command(*command))  # type: ignore[no-untyped-call] # the client leaves it bare


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> _Script:
        text = files("cache").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_APPLY = _Script.load("apply")
_EPOCH = _Script.load("epoch")
_BEAT = _Script.load("beat")
_FILL = _Script.load("fill")
