"""Reads of Redis: what is asked in one turn of the event loop, or while a round trip is under way, goes in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cache.clock import RedisClock
from cache.link import ODD_REPLY, RedisLink, RedisSkipped
from cache.metrics import CacheMetrics
from cache.names import Names
from cache.state import State
from cache.wire import Command

_KEYS_A_BATCH = 200
_WAITING = 20_000
_STRINGS = {bytes, type(None)}


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


# Digest, tags, and whom to tell.
Ask = tuple[str, tuple[str, ...], Callable[[Reading | None], None]]


@dataclass(slots=True)
class _Round:
    """One batch on its way. `keys` are those of the asks, `asked` the different ones of them."""

    epoch: str
    asks: list[Ask]
    is_second: bool
    keys: list[bytes]
    asked: list[bytes]
    tags: list[str]
    sent: float


class Reads:
    """The reads of one silo, one round trip at a time: what comes meanwhile makes the next batch larger, which is what
    a batch is for, and nothing waits for a batch to fill.

    There is no task a batch: it is sent by the event loop, and whoever asked is told where the reply is parsed. `run`
    opens connections; without it nothing is sent, and what is asked waits for it.
    """

    def __init__(self, silo: str, names: Names, clock: RedisClock, link: RedisLink, metrics: CacheMetrics) -> None:
        self.latest: State | None = None
        self._silo = silo
        self._names = names
        self._clock = clock
        self._link = link
        self._metrics = metrics
        self._raw_state: bytes | None = None
        self._epoch = "-"
        self._waiting: deque[Ask] = deque()
        self._is_due = False
        self._is_away = False
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                # a round trip that the last run was cancelled in says nothing any more
                self._is_away = False
                self._send_soon()
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None

    def put(self, ask: Ask) -> bool:
        """Whether there was room for it. Whom to tell must not raise."""
        if len(self._waiting) >= _WAITING:
            return False
        self._waiting.append(ask)
        if not (self._is_away or self._is_due):
            self._send_soon()
        return True

    def _send_soon(self) -> None:
        """Once the event loop has run all that is ready, so that those of one turn share a batch."""
        if self._waiting and not (self._is_away or self._is_due) and self._tasks is not None:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_due = False
        if self._tasks is None:
            return
        self._is_away = True
        waiting = self._waiting
        if len(waiting) <= _KEYS_A_BATCH:
            asks = list(waiting)
            waiting.clear()
        else:
            asks = [waiting.popleft() for _ in range(_KEYS_A_BATCH)]
        self._look(self._epoch, asks, is_second=False)

    def _look(self, epoch: str, asks: list[Ask], *, is_second: bool) -> None:
        """One round trip: state first, then entries, then tags, so that nothing applied in between is overlooked.

        The epoch's mark is asked for with the tags: a reply without it has the tags of another epoch, or none.
        """
        prefix = self._names.entries_of(epoch)
        keys = [(prefix + digest).encode() for digest, _, _ in asks]
        asked = list(dict.fromkeys(keys))
        tags = list(dict.fromkeys([tag for _, tags, _ in asks for tag in tags]))
        one = _Round(epoch, asks, is_second, keys, asked, tags, self._clock.own())
        commands: list[Command] = [
            ("TIME",),
            ("GET", self._names.state),
            ("MGET", *asked),
            ("ZMSCORE", self._names.tags, f"={epoch}", *tags),
        ]
        if self._link.begin(commands, lambda replies: self._back(one, replies)):
            return
        if self._link.skipped or self._tasks is None:
            self._back(one, None)
        else:
            self._tasks.create_task(self._open_and_look(commands, one))

    async def _open_and_look(self, commands: list[Command], one: _Round) -> None:
        try:
            replies = await self._link.ask(commands, list)
        except RedisSkipped:
            self._back(one, None)
        else:
            self._back(one, replies)

    def _back(self, one: _Round, replies: list[Any] | None) -> None:
        """A round trip has ended; None says that Redis was no help."""
        readings: list[Reading] | None = None
        if replies is not None:
            try:
                readings = self._read(one, replies)
            except ODD_REPLY:
                self._link.distrust()
        state = self.latest
        if readings is not None and state is not None and state.epoch != one.epoch:
            self._epoch = state.epoch
            if not one.is_second:
                self._metrics.epoch_retries.labels(self._silo).inc()
                self._look(state.epoch, one.asks, is_second=True)
                return
        self._is_away = False
        self._send_soon()
        if readings is None:
            for _, _, told in one.asks:
                told(None)
        else:
            for (_, _, told), reading in zip(one.asks, readings, strict=True):
                told(reading)

    def _read(self, one: _Round, replies: list[Any]) -> list[Reading]:
        """Raises whatever comes of replies that are not those of these commands."""
        clock, raw, entries, (mark, *scores) = replies
        if type(raw) not in _STRINGS or not set(map(type, entries)) <= _STRINGS:
            raise TypeError("not an entry")
        seconds, micros = clock
        self._clock.set(one.sent, int(seconds), int(micros))
        if raw != self._raw_state:
            # the same object as long as Redis says the same: who shows it need not make it again either
            self._raw_state, self.latest = raw, State.parse(raw)
        state = self.latest
        # If an epoch began between two looks, its keys were not asked for: there is no entry.
        usable = mark is not None and state is not None and state.epoch == one.epoch
        found = dict(zip(one.asked, entries, strict=True))
        newest_of = {tag: float(score) for tag, score in zip(one.tags, scores, strict=True) if score is not None}
        readings = []
        for key, (_, tags, _) in zip(one.keys, one.asks, strict=True):
            newest = -1.0
            if newest_of:
                for tag in tags:
                    newest = max(newest, newest_of.get(tag, -1.0))
            readings.append(Reading(state, key, found[key] if usable else None, newest, usable))
        return readings
