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
from redis.exceptions import OutOfMemoryError

from cache.batch import Batcher, Sizes
from cache.clock import RedisClock
from cache.definition import LONGEST_LIFE_S
from cache.link import RedisLink, RedisSkipped
from cache.metrics import CacheMetrics
from cache.names import Names
from cache.reads import Reading, Reads
from cache.state import Position, State
from cache.wire import Command

RETENTION_S = 2 * LONGEST_LIFE_S
LARGEST_ENTRY = 1 << 20
_FILLS_A_BATCH = 50
_WAITING_FILLS = 2_000
# All the fills of a batch are sent within _SCRIPT_TIMEOUT_S, or none of them counts.
_BYTES_A_BATCH = 4 << 20
_WAITING_BYTES = 32 << 20
_FEED_LENGTH = 1_000
_SCRIPT_TIMEOUT_S = 1.0
# A batch of fills costs as much as twenty fills do. Meanwhile `Landed` has the answers.
_LINGER_S = 0.003
_FILLED = {"stored", "kept", "tag", "floor", "epoch", "definition", "no_state", "no_tags", "full"}


@dataclass(slots=True)
class Fill:
    """An answer offered to Redis: `value` was packed for `key` of this position's epoch."""

    position: Position
    key: bytes
    value: bytes
    tags: tuple[str, ...]
    life_ms: int
    replace: bool


class Store:
    """The cache of one silo. Reading and filling need `run`; what Redis fails to do is a miss and never an error.

    `definition` is this process's own digest of indexes, normalisers and HMAC key.
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
        names: Names | None = None,
    ) -> None:
        self.silo = silo
        self.definition = definition
        self._link = link
        self._metrics = metrics
        self._retention_ms = int(retention_s * 1000)
        self._names = names or Names(silo)
        self._clock = RedisClock(clock)
        # Redis's clock: what the lives of entries are by.
        self.now_ms = self._clock.now_ms
        self.entry_key = self._names.entry
        self.entries_of = self._names.entries_of
        self._no_fills_until = 0.0
        self._counted: dict[str, Counter] = {}
        self._reads = Reads(silo, self._names, self._clock, link, metrics)
        self._fills: Batcher[None, Fill] = Batcher(
            self._serve_fills,
            workers=1,
            most=_FILLS_A_BATCH,
            waiting=_WAITING_FILLS,
            sizes=Sizes(lambda fill: len(fill.value), _BYTES_A_BATCH, _WAITING_BYTES),
            linger_s=_LINGER_S,
        )

    async def run(self) -> None:
        """Serve reads and fills until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reads.run())
            tasks.create_task(self._fills.run())

    @property
    def latest(self) -> State | None:
        """The newest state that any read has shown."""
        return self._reads.latest

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
        if not self._reads.put((digest, tags, told)):
            self._metrics.overloaded.labels(self.silo).inc()
            return False
        return True

    def offer(self, fill: Fill, *, is_urgent: bool = False) -> None:
        """Keep an answer if that is still right when Redis sees it. Returns at once and promises nothing.

        It is sent some milliseconds later, with others, unless it is urgent: somebody looks for it at once.
        """
        if fill.life_ms < 1 or len(fill.value) > LARGEST_ENTRY:
            self._count_fill("not_kept")
        elif (
            self._link.skipped
            or self._clock.own() < self._no_fills_until
            or not self._fills.put(None, fill, is_urgent=is_urgent)
        ):
            self._count_fill("dropped")

    # Filling

    async def _serve_fills(self, _group: None, fills: list[Fill]) -> None:
        try:
            commands = [self._command(fill) for fill in fills]
            outcomes = await self._link.send(commands, _FILL.text, _outcomes, timeout_s=_SCRIPT_TIMEOUT_S)
        except RedisSkipped:
            outcomes = ["dropped"] * len(fills)
        for outcome in outcomes:
            if outcome == "full":
                self._no_fills_until = self._clock.own() + 1.0
                self._metrics.redis_errors.labels("full").inc()
            self._count_fill(outcome)

    def _command(self, fill: Fill) -> Command:
        state, tags, floor = self._names.of_scripts[:3]
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
        sent = self._clock.own()
        seconds, micros, raw = await self._link.ask(
            [("TIME",), ("GET", self._names.state)], _time_and_state, timeout_s=_SCRIPT_TIMEOUT_S
        )
        self._clock.set(sent, seconds, micros)
        return raw, seconds * 1000 + micros // 1000

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
        command = ("EVALSHA", script.sha, keys, *self._names.of_scripts[:keys], *arguments)
        return await self._link.send([command], script.text, _word, timeout_s=_SCRIPT_TIMEOUT_S)


# Each raises one of ODD_REPLY for what is no reply to its commands.


def _time_and_state(replies: list[Any]) -> tuple[int, int, bytes | None]:
    (seconds, micros), raw = replies
    if not isinstance(raw, bytes | None):
        raise TypeError("not a state")
    return int(seconds), int(micros), raw


def _word(replies: list[Any]) -> str:
    """What a script says; raises OutOfMemoryError where Redis has no room for what it does."""
    [said] = replies
    if isinstance(said, OutOfMemoryError):
        raise said
    word: str = said.decode()
    return word


def _outcomes(replies: list[Any]) -> list[str]:
    """What FILL says, word by word; raises ValueError for what it does not say."""
    outcomes = ["full" if isinstance(reply, OutOfMemoryError) else reply.decode() for reply in replies]
    if not _FILLED.issuperset(outcomes):
        raise ValueError("not what FILL says")
    return outcomes


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
