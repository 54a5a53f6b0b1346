"""A silo, its Redis and the feed as plain lists: what the in-process cache is told, and what it may then say."""

from __future__ import annotations

import copy
import itertools
import random
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry

from cache.entry import Entry
from cache.feed import L1, _Lost, _Reply
from cache.metrics import CacheMetrics
from cache.state import Position, State

FOREVER_MS = 10**15
_FEED_LENGTH = 6
_ROUND_S = 0.01


def entry(seq: int, *, soft_ms: int = FOREVER_MS, fresh_ms: int = FOREVER_MS, body: bytes = b"[]") -> Entry:
    return Entry(seq, 0, soft_ms, fresh_ms, 0, negative=False, body=body)


@dataclass
class FakeRedis:
    """What one server holds of the silo. `offset` is how far its clock, and so its stream ids, are from the others'."""

    state: State | None = None
    tags: dict[str, int] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    feed: list[tuple[bytes, dict[bytes, bytes]]] = field(default_factory=list)
    floor: int = 0
    offset: int = 0
    newest_id: int = 0

    def add(self, tick: int, epoch: str, previous: int | None, seq: int, tags: tuple[str, ...]) -> None:
        self.newest_id = max(self.newest_id + 1, tick + self.offset)
        words = {"epoch": epoch, "previous": "" if previous is None else previous, "seq": seq, "tags": " ".join(tags)}
        fields = {name.encode(): str(value).encode() for name, value in words.items()}
        self.feed.append((b"%012d" % self.newest_id, fields))

    def after(self, last_id: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        return [row for row in self.feed if row[0] > last_id]


class FakeSilo:
    """A change log, a Redis that follows it, and one process's cache. Time goes by only when told."""

    def __init__(self, kind: type[L1] = L1, *, most_entries: int = 100, most_bytes: int = 10**7) -> None:
        self.now = 100.0
        self.tick = itertools.count(1_000_000)
        self.registry = CollectorRegistry()
        self.l1 = kind(
            "town",
            "redis://localhost",
            CacheMetrics(self.registry),
            most_entries=most_entries,
            most_bytes=most_bytes,
            clock=lambda: self.now,
        )
        self.log: list[tuple[str, ...]] = [()]
        self.epochs = itertools.count(1)
        # The change log's length at each tick that a beat could speak of.
        self.tips: dict[int, int] = {}
        self.redis = FakeRedis()
        self.begin_epoch()

    @property
    def seq(self) -> int:
        """The primary's newest position."""
        return len(self.log) - 1

    # The silo and its invalidator

    def commit(self, *tags: str) -> int:
        self.log.append(tags)
        return self.seq

    def apply(self) -> bool:
        """One row of the change log; False when there is none to apply."""
        state = self.redis.state
        if state is None or state.seq >= self.seq:
            return False
        seq = state.seq + 1
        self.redis.tags |= dict.fromkeys(self.log[seq], seq)
        self.redis.state = replace(state, position=replace(state.position, seq=seq, id=f"id{seq}"))
        self.redis.add(next(self.tick), state.epoch, state.seq, seq, self.log[seq])
        return True

    def change(self, *tags: str) -> int:
        """A change that Redis knows of at once."""
        self.commit(*tags)
        while self.apply():
            pass
        return self.seq

    def begin_epoch(self) -> None:
        """As after FLUSHALL: the silo gets a new epoch, and Redis follows."""
        epoch, tick = f"e{next(self.epochs)}", next(self.tick)
        self.redis = FakeRedis(floor=self.seq, offset=self.redis.offset)
        self.tips[tick] = self.seq
        self.redis.state = State(Position(epoch, self.seq, f"id{self.seq}", "d"), "server", tick)
        self.redis.add(tick, epoch, None, self.seq, ())

    def beat(self) -> None:
        state = self.redis.state
        if state is not None and state.seq == self.seq:
            tick = next(self.tick)
            self.tips[tick] = self.seq
            self.redis.state = replace(state, time_ms=tick)

    # The feed

    def reply(self, rows: list[tuple[bytes, dict[bytes, bytes]]] | None = None) -> _Reply:
        found = self.redis.after(self.l1._last_id) if rows is None else rows
        return _Reply(self.now, found, self.redis.state, self.now * 1000)

    def begin(self) -> None:
        last = self.redis.feed[-1][0] if self.redis.feed else b"0-0"
        self.l1._begin(_Reply(self.now, (), self.redis.state, self.now * 1000), last)

    def take(self, reply: _Reply | None = None) -> str | None:
        """Deliver one round, and begin again where `run` would; returns why."""
        try:
            self.l1._take(self.reply() if reply is None else reply)
        except _Lost as lost:
            self.l1._lose(lost.reason)
            self.begin()
            return lost.reason
        return None

    # Checking

    def wrong(self, digest: str, tags: tuple[str, ...]) -> str | None:
        """What is wrong with what the cache would serve: a change that its as-of promises and it lacks."""
        held = self.l1.get(digest)
        if held is None:
            return None
        for seq in range(held.entry.seq + 1, held.state.seq + 1):
            if set(self.log[seq]) & set(tags):
                return f"as of {held.state.seq}, read at {held.entry.seq}, lacks {seq}"
        if self.tips[held.state.time_ms] > held.state.seq:
            return f"as of {held.state.seq} is not what was newest at {held.state.time_ms}"
        return None

    def dropped(self, reason: str) -> float:
        return self.registry.get_sample_value("silogate_l1_dropped_total", {"silo": "town", "reason": reason}) or 0.0


KEYS = {
    "a": ("t1",),
    "b": ("t2",),
    "ab": ("t1", "t2"),
    "table": ("all",),
}


class RandomRun:
    """One run of everything that can happen, in an order made from the seed."""

    def __init__(self, seed: int, kind: type[L1] = L1) -> None:
        self.random = random.Random(seed)
        self.silo = FakeSilo(kind, most_entries=3)
        self.silo.begin()
        self.in_flight: list[tuple[str, Entry, State]] = []
        self.copies = [copy.deepcopy(self.silo.redis)]
        self.rows: list[tuple[bytes, dict[bytes, bytes]]] | None = None
        self.due: _Reply | None = None

    def violation(self, steps: int = 250) -> str | None:
        acts = [self._commit] * 4 + [self._apply] * 5 + [self._fill] * 4 + [self._read] * 5 + [self._reply] * 5
        acts += [self._round] * 12 + [self._beat, self._beat, self._trim, self._copy, self._failover, self._flush]
        acts += [self._pause, self._reconnect]
        for _ in range(steps):
            self.random.choice(acts)()
            for digest, tags in KEYS.items():
                if wrong := self.silo.wrong(digest, tags):
                    return wrong
        return None

    def _commit(self) -> None:
        self.silo.commit("all", *(tag for tag in ("t1", "t2") if self.random.random() < 0.4))

    def _apply(self) -> None:
        self.silo.apply()

    def _fill(self) -> None:
        """An answer of any snapshot of the silo is offered; FILL refuses one that a later change has touched."""
        state = self.silo.redis.state
        digest, tags = self.random.choice(list(KEYS.items()))
        seq = self.random.randint(max(0, self.silo.seq - 3), self.silo.seq)
        guarding = [self.silo.redis.floor, *(self.silo.redis.tags.get(tag, -1) for tag in tags)]
        if state is not None and seq >= max(guarding):
            self.silo.redis.entries[digest] = entry(seq)

    def _read(self) -> None:
        """A validated read is answered by Redis; the reply is on its way."""
        redis = self.silo.redis
        digest = self.random.choice(list(redis.entries) or ["a"])
        found = redis.entries.get(digest)
        if found and redis.state and all(redis.tags.get(tag, -1) <= found.seq for tag in KEYS[digest]):
            self.in_flight.append((digest, found, redis.state))

    def _reply(self) -> None:
        if self.in_flight:
            digest, found, state = self.in_flight.pop(self.random.randrange(len(self.in_flight)))
            self.silo.l1.keep(digest, KEYS[digest], found, state)

    def _round(self) -> None:
        """The rows are read, then the state, then both arrive: each at its own time."""
        self.silo.now += _ROUND_S
        if self.due is not None:
            reply, self.due = self.due, None
            self.silo.take(reply)
        elif self.rows is not None:
            self.due, self.rows = self.silo.reply(self.rows), None
        else:
            self.rows = self.silo.redis.after(self.silo.l1._last_id)

    def _beat(self) -> None:
        self.silo.beat()

    def _trim(self) -> None:
        del self.silo.redis.feed[: -self.random.randint(1, _FEED_LENGTH)]

    def _copy(self) -> None:
        self.copies = [*self.copies[-3:], copy.deepcopy(self.silo.redis)]

    def _failover(self) -> None:
        """A replica that is behind, of the same epoch, with a clock of its own, takes over."""
        state = self.silo.redis.state
        fit = [one for one in self.copies if one.state and state and one.state.epoch == state.epoch]
        if fit:
            self.silo.redis = copy.deepcopy(self.random.choice(fit))
            self.silo.redis.offset = self.random.choice((-1000, 0, 1000))
            self.in_flight = [one for one in self.in_flight if self.random.random() < 0.7]
            if self.random.random() < 0.5:
                self._reconnect()

    def _flush(self) -> None:
        if self.random.random() < 0.3:
            self.silo.begin_epoch()

    def _pause(self) -> None:
        if self.random.random() < 0.3:
            self.silo.now += 10

    def _reconnect(self) -> None:
        self.rows = self.due = None
        self.silo.l1._lose("gap")
        self.silo.begin()
