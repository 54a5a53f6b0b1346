"""Answers kept in this process, and kept right by the feed: the Redis Stream that every change of a silo is put on.

An entry comes here only after Redis has validated it, and goes with the first change of one of its tags. What makes
that right, although replies and feed arrive on different connections and in any order:

* `keep` takes an entry that was valid at a position no older than the feed's. Every change after that position is then
  still to come on the feed, and drops the entry unless the entry was read from the silo after it.
* Each row of the feed names the one before it, and what `state` said a round ago must have come by now: a row that was
  trimmed, skipped or lost is noticed at the latest one round later, and everything here goes.
* A new epoch, a state that went back (a failover to a Redis that was behind), a lost connection or a row that cannot be
  read: everything goes. What is in flight then is judged against the position that is followed next.
* Nothing is served once the last word of Redis is older than `silence_s`, reckoned from before it was asked for. A
  process that was frozen finds that out in `get`, before it has heard anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from cache.entry import Entry
from cache.metrics import CacheMetrics
from cache.shelf import Held, Shelf, Slot, reckoned
from cache.state import Position, State

__all__ = ["L1", "Held"]

_log = logging.getLogger(__name__)
_BLOCK_S = 0.1
_ROWS_A_ROUND = 100
_CONNECT_TIMEOUT_S = 1.0
_FIRST_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 1.0
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the feed. `previous` is None where an epoch begins."""

    epoch: str
    previous: int | None
    seq: int
    tags: list[str]

    @classmethod
    def parse(cls, fields: Mapping[bytes, bytes]) -> _Row:
        """Raises _Lost when it cannot be read: then nobody knows what it would have dropped."""
        try:
            text = {name: fields[name].decode("ascii") for name in (b"epoch", b"previous", b"seq", b"tags")}
            previous = int(text[b"previous"]) if text[b"previous"] else None
            return cls(text[b"epoch"], previous, int(text[b"seq"]), text[b"tags"].split())
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _Lost("gap") from None


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one round trip brought: rows as (id, fields), and `state` and the clock of Redis from after them."""

    sent: float
    rows: Sequence[tuple[bytes, Mapping[bytes, bytes]]]
    state: State | None
    clock_ms: float


class _Lost(Exception):
    """The feed cannot be followed from where it is; `reason` is `gap`, `epoch` or `failover`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class L1:
    """What one process keeps of one silo's answers. Empty, and refusing, until `run` follows the feed.

    `most_entries` and `most_bytes` bound it together with its index of tags. An answer from here is as new as the
    feed, which may be a moment behind what another reply of Redis has shown: who asks for at least a position compares
    it with `Held.state`, and asks Redis when that is older.
    """

    def __init__(
        self,
        silo: str,
        url: str,
        metrics: CacheMetrics,
        *,
        most_entries: int,
        most_bytes: int,
        silence_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._silo = silo
        self._url = url
        self._clock = clock
        self._silence_s = silence_s
        self._block_s = min(_BLOCK_S, silence_s / 4)
        self._prefix = f"silogate:{{{silo}}}:"
        self._shelf = Shelf(most_entries, most_bytes)
        self._entries = metrics.l1_entries.labels(silo)
        self._bytes = metrics.l1_bytes.labels(silo)
        self._dropped = metrics.l1_dropped
        # The position of the feed; None while it is not followed.
        self._state: State | None = None
        self._last_id = b"0-0"
        self._said_seq = 0
        self._until = -math.inf
        self._ahead_ms = 0.0
        self._pause_s = _PAUSE_S
        self._failing = False

    def get(self, digest: str) -> Held | None:
        """The entry under the digest, as new as the feed is; None when it is absent, due, or the feed is not followed.

        An entry goes from here at the end of its soft TTL: Redis has, or soon will have, the one that renews it.
        """
        slot = self._shelf.slots.get(digest)
        if slot is None:
            return None
        now = self._clock()
        state = self._state
        if now >= self._until or state is None:
            return None
        if now * 1000 + self._ahead_ms >= slot.ends_ms:
            self._shelf.drop(digest)
            self._count("expired", 1)
            return None
        self._shelf.slots.move_to_end(digest)
        if slot.held.state is not state:
            slot.held = Held(slot.entry, state)
        return slot.held

    @property
    def position(self) -> Position | None:
        """Where the feed stands; None while it is not followed."""
        return None if self._state is None else self._state.position

    def holds_older(self, tags: Iterable[str], seq: int) -> bool:
        """Whether anything is held under one of these tags that was read from the silo before `seq`."""
        slots = (self._shelf.slots[digest] for tag in tags for digest in self._shelf.tagged.get(tag, ()))
        return any(slot.entry.seq < seq for slot in slots)

    def keep(self, digest: str, tags: tuple[str, ...], entry: Entry, state: State) -> None:
        """Take an entry that Redis validated against these tags at `state`, if that is no older than the feed."""
        at, now = self._state, self._clock()
        # Older, and the rows in between, which may have touched it, have been and gone.
        if at is None or now >= self._until or state.epoch != at.epoch or state.seq < at.seq:
            return
        ends_ms = min(entry.soft_ms, entry.fresh_ms)
        if now * 1000 + self._ahead_ms >= ends_ms:
            return
        before = self._shelf.slots.get(digest)
        if before is not None and before.entry.seq > entry.seq:
            return
        slot = Slot(entry, tags, ends_ms, reckoned(entry, tags), Held(entry, at))
        self._count("evicted", self._shelf.put(digest, slot))

    async def run(self) -> None:
        """Follow the feed until cancelled; while Redis is away there is nothing here, and it is tried again."""
        try:
            while True:
                redis = self._connect()
                try:
                    await self._follow(redis)
                except (RedisError, OSError) as error:
                    self._lose("silence" if isinstance(error, TimeoutError) else "gap")
                    self._failed(type(error).__name__)
                finally:
                    await _close(redis)
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        finally:
            self._lose("silence")

    # Following

    async def _follow(self, redis: Redis) -> None:
        while True:
            try:
                if self._state is None:
                    self._begin(*await self._first(redis))
                else:
                    self._take(await self._next(redis))
            except _Lost as lost:
                self._lose(lost.reason)
                _log.info("l1_emptied", extra={"silo": self._silo, "reason": lost.reason})
                continue
            if self._state is None:
                await asyncio.sleep(self._block_s)
            self._heard()

    def _begin(self, reply: _Reply, last_id: bytes) -> None:
        """Follow from where the silo stands. Without a state there is nothing to follow yet."""
        self._state, self._last_id = reply.state, last_id
        if reply.state is not None:
            self._said_seq = reply.state.seq
            self._set_clock(reply)

    def _take(self, reply: _Reply) -> None:
        """Move on by the rows of one round; raises _Lost when they do not join on to what went before."""
        if self._clock() >= self._until:
            # It had been silent for too long before this came. The rows still join on, so it is followed from here.
            self._forget("silence")
        for row_id, fields in reply.rows:
            self._move(_Row.parse(fields))
            self._last_id = row_id
        at, state = self._state, reply.state
        if at is None or state is None or state.epoch != at.epoch:
            raise _Lost("epoch")
        if state.seq < at.seq or (state.seq == at.seq and at.position.id not in {"-", state.position.id}):
            # Redis has forgotten rows that came from it: another server, or this one with another's data.
            raise _Lost("failover")
        if at.seq < self._said_seq and len(reply.rows) < _ROWS_A_ROUND:
            # State and feed move together, so what the state said before this was asked for should have been in it.
            raise _Lost("gap")
        self._said_seq = state.seq
        if state.seq == at.seq and state != at:
            # Only the state of this very position tells when it was the newest one; one further on tells of itself.
            self._state = state
        self._set_clock(reply)

    def _move(self, row: _Row) -> None:
        at = self._state
        if at is None or row.previous is None or row.epoch != at.epoch:
            raise _Lost("epoch")
        if row.previous != at.seq or row.seq <= at.seq:
            raise _Lost("gap")
        for tag in row.tags:
            self._count("tag", self._shelf.drop_touched(tag, row.seq))
        # The feed does not carry the row's id. The time stays true: whatever was newest then is in here too.
        self._state = replace(at, position=replace(at.position, seq=row.seq, id="-"))

    def _set_clock(self, reply: _Reply) -> None:
        # From before the question left: neither the silence nor Redis's clock may seem shorter than they are.
        self._until = reply.sent + self._silence_s
        self._ahead_ms = reply.clock_ms - reply.sent * 1000
        self._show()

    # Redis

    async def _first(self, redis: Redis) -> tuple[_Reply, bytes]:
        """State and the feed's newest id at one moment."""
        sent = self._clock()
        async with asyncio.timeout(_FIRST_TIMEOUT_S), redis.pipeline(transaction=True) as pipe:
            pipe.execute_command("GET", f"{self._prefix}state")
            pipe.execute_command("XREVRANGE", f"{self._prefix}feed", "+", "-", "COUNT", 1)
            pipe.execute_command("TIME")
            raw, newest, clock = await pipe.execute()
        return _Reply(sent, (), State.parse(raw), _milliseconds(clock)), newest[0][0] if newest else b"0-0"

    async def _next(self, redis: Redis) -> _Reply:
        """Rows after the last one, as soon as there are any, and then the state: never older than they are."""
        sent = self._clock()
        block_ms = max(1, int(self._block_s * 1000))
        async with asyncio.timeout(self._silence_s + self._block_s), redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(
                "XREAD", "COUNT", _ROWS_A_ROUND, "BLOCK", block_ms, "STREAMS", f"{self._prefix}feed", self._last_id
            )
            pipe.execute_command("GET", f"{self._prefix}state")
            pipe.execute_command("TIME")
            streams, raw, clock = await pipe.execute()
        rows = streams[0][1] if streams else ()
        return _Reply(sent, rows, State.parse(raw), _milliseconds(clock))

    def _connect(self) -> Redis:
        return Redis.from_url(
            self._url,
            max_connections=1,
            # No time-out of the client's own: each round has a deadline, and ending it closes the connection.
            socket_timeout=None,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name=f"silogate-l1-{self._silo}",
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )

    # Losing

    def _lose(self, reason: str) -> None:
        self._state, self._until = None, -math.inf
        self._forget(reason)

    def _forget(self, reason: str) -> None:
        self._count(reason, self._shelf.clear())
        self._show()

    def _failed(self, kind: str) -> None:
        if not self._failing:
            self._failing = True
            _log.warning("l1_feed_lost", extra={"silo": self._silo, "kind": kind})

    def _heard(self) -> None:
        self._pause_s = _PAUSE_S
        if self._failing:
            self._failing = False
            _log.info("l1_feed_followed_again", extra={"silo": self._silo})

    def _count(self, reason: str, dropped: int) -> None:
        if dropped:
            self._dropped.labels(self._silo, reason).inc(dropped)

    def _show(self) -> None:
        self._entries.set(len(self._shelf.slots))
        self._bytes.set(self._shelf.bytes)


def _milliseconds(clock: Any) -> float:
    return float(clock[0] * 1000 + clock[1] / 1000)


async def _close(redis: Redis) -> None:
    with contextlib.suppress(RedisError, OSError):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await redis.aclose()
