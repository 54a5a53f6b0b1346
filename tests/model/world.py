"""The protocol of validated reads (architecture, section 5) in a world small enough to try all that can happen.

Who acts. One silo. Row 1 moves between two index values, A and B, so its change touches the tags of both; a row at A
and one at B change in place. Two lookups, one by A and one by B. The applier commits what `Rules.programme` lists.
Replicas replay one commit at a time. Fills take two steps: a snapshot of any server, and FILL at any later time.
Invalidators stop after every question they ask. Entries are evicted. Redis fails over to a replica that lacks its last
writes, is flushed, or loses one key. Postgres fails over to a lagging replica: the commits that it lacks are lost,
their seqs are used again under other ids, and another replica may stay on the dead timeline. A silo may be set back to
an older image of itself. Time passes in ticks, which end entries and trim tags.

What is real. Every step on Redis is a script of cache/scripts, run as Lua 5.1 on `port.py`, which `test_port.py` holds
against the real server. An invalidator's steps are `cache.coherence.Invalidator.step` itself: `follower.py` runs it
again and again with the replies that it had so far, to learn its next question. What is written anew: the silo's
database; the arguments of FILL (`Model.fill_call`); and how `Store` and `Group` accept an entry: `state`, then the
entry, then the tags, the mark is there and `seq >= newest tag` (`Model.counts`). `test_reader.py` holds that order
against the commands that the real `Store` sends.

How. A `World` is a tuple, so two ways to the same situation are one. `moves.py` lists all that can happen next;
`search.py` goes through every world that can be reached, breadth first, so a violation comes with the shortest way to
it. What belongs to an epoch that can never come back is left out of a world (`living`).

What is judged, in every world (`judge.py`): whatever any reader could be served now has every change at or below its
as-of; `state.time` is no later than a moment at which that position was the primary's tip; and once the invalidators
have run to their end, an entry that counts is what the database says. A path names the rows of the change log from the
first one on, one letter each and never used twice, so it says both what a database holds and what an answer was read
from; the letters mean nothing else.

What is not in it: a promoted Redis whose clock differs, a primary of Postgres that goes on after another was promoted,
and a Redis that does so too. A read is cut off by its deadline before a tick; an invalidator and a fill never are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

FEED_LENGTH = 1_000
LOOKUPS = "AB"

Zset = tuple[tuple[bytes, float], ...]
# What an invalidator was answered so far in its step.
Replies = tuple[object, ...]


class Redis(NamedTuple):
    """What the scripts may read. The feed is not in it: nothing in it is ever read by a script."""

    state: bytes | None = None
    tags: Zset | None = None
    floor: bytes | None = None
    samples: Zset | None = None
    epochs: Zset | None = None
    # Key, value, and the time at which it ends.
    entries: tuple[tuple[bytes, bytes, int], ...] = ()

    def entry(self, key: bytes) -> bytes | None:
        return next((value for name, value, _ in self.entries if name == key), None)

    def without(self, key: bytes) -> Redis:
        return self._replace(entries=tuple(entry for entry in self.entries if entry[0] != key))


class Place(NamedTuple):
    """Where a database is: its epoch, and the rows of its change log."""

    epoch: str
    path: str


class Postgres(NamedTuple):
    """The servers of the silo. `wal` begins at the replica that is furthest behind and ends at the primary's tip.

    `first` and `second` say where in it the replicas are; `second` is None where there is none. `dead` is what a
    replica of a dead timeline has still to replay, from where it is. `ended` are places that were the tip, each with
    the last time at which they were.
    """

    server: int
    wal: tuple[Place, ...]
    first: int
    second: int | None
    dead: tuple[Place, ...]
    log_from: int
    commits: int
    mints: int
    # The server that wrote the tip, which one that was promoted since did not.
    writer: int = 1
    ended: tuple[tuple[Place, int], ...] = ()

    @property
    def tip(self) -> Place:
        return self.wal[-1]

    def replicas(self) -> set[Place]:
        """Where the replicas are that may be asked."""
        live = {self.wal[self.first]} if self.second is None else {self.wal[self.first], self.wal[self.second]}
        return live | set(self.dead[:1])

    def advanced(self, place: Place, now: int) -> Postgres:
        return self._replace(wal=(*self.wal, place), writer=self.server, ended=_ended(self, now))

    def replayed(self, first: int, second: int | None) -> Postgres:
        """With the replicas there, and no more of the log than somebody has still to replay."""
        gone = first if second is None else min(first, second)
        return self._replace(wal=self.wal[gone:], first=first - gone, second=None if second is None else second - gone)


def _ended(postgres: Postgres, now: int) -> tuple[tuple[Place, int], ...]:
    # Without time there is nothing to tell apart, and the list would only multiply the worlds.
    if not now:
        return postgres.ended
    return tuple(sorted({**dict(postgres.ended), postgres.tip: now}.items()))


class Fill(NamedTuple):
    """An answer on its way to Redis."""

    lookup: str
    place: Place
    token: bytes = b""


class Reader(NamedTuple):
    """A read under way, with keys of `epoch`, and what it has of the three replies."""

    lookup: str
    epoch: str
    replies: tuple[object, ...] = ()


class World(NamedTuple):
    """Everything, at one moment. `left` counts what may still go wrong, in the order of `Rules.faults`."""

    postgres: Postgres
    redis: Redis
    behind: Redis | None
    doing: tuple[Replies, ...]
    fills: tuple[Fill, ...]
    reader: Reader | None
    now: int
    left: tuple[int, ...]
    # What a mutant needs to remember: leases held, deletions to come.
    more: tuple[tuple[bytes, ...], ...] = ()


@dataclass(frozen=True)
class Rules:
    """One small world: what its applier commits, who acts in it, and how often what may go wrong.

    `programme` has one word a commit. Its letters are rows of the change log: `a` and `b` change a row in place at A or
    B, `m` moves row 1, `x` is a change too large for tags (a new epoch), `d` a new definition of the index columns.
    `faults` may name: evict, flush, lose (a key without a TTL), redis (fails over), postgres (fails over), back (the
    silo is set back), trim (the change log), tick. `from_nothing` begins with an empty Redis; else one invalidator has
    been there before.
    """

    name: str
    programme: tuple[str, ...]
    invalidators: int = 2
    fills: int = 1
    second_replica: bool = False
    reads_in_steps: bool = False
    from_primary: bool = False
    from_nothing: bool = False
    minds_server: bool = True
    beats: bool = False
    retention_ms: int = 2
    life_ms: int = 1
    faults: dict[str, int] = field(default_factory=dict)
    # A search that sees fewer worlds than this has lost sight of something.
    least: int = 0

    @property
    def rows(self) -> str:
        return "".join(self.programme)

    def touched(self, letter: str) -> str:
        """Which lookups a row of the change log is about."""
        kind = self.rows[ord(letter) - ord("a")]
        return {"a": "A", "b": "B"}.get(kind, LOOKUPS)

    def about(self, path: str, lookup: str) -> frozenset[str]:
        """The changes of a path that touch a lookup's answer."""
        return frozenset(letter for letter in path if lookup in self.touched(letter))

    def definition(self, path: str) -> str:
        return f"d{sum(self.rows[ord(letter) - ord('a')] == 'd' for letter in path)}"

    def tags(self, path: str) -> tuple[str, ...]:
        """The tags of the last row of a path: of its before image first, then of its after image."""
        kind = self.rows[ord(path[-1]) - ord("a")]
        if kind in "xd":
            return ()
        moves = sum(self.rows[ord(letter) - ord("a")] == "m" for letter in path)
        touched = "BA" if kind == "m" and moves % 2 == 0 else self.touched(path[-1])
        return tuple(tag_of(lookup, self.definition(path)) for lookup in touched)


def tag_of(lookup: str, definition: str) -> str:
    """Sides with different definitions make different tags of the same value."""
    return f"{lookup}/{definition}"


def row_id(path: str) -> str:
    return f"i{path}"


def entry_key(epoch: str, lookup: str) -> bytes:
    return f"lk:{epoch}:{lookup}".encode()


def beginning(rules: Rules) -> World:
    """A silo that has been loaded and a Redis that has nothing."""
    at_start = Place("e0", "")
    second = 0 if rules.second_replica else None
    postgres = Postgres(1, (at_start,), 0, second, dead=(), log_from=0, commits=0, mints=0)
    left = tuple(rules.faults.values())
    return World(postgres, Redis(), None, ((),) * rules.invalidators, (), None, now=0, left=left)


def living(world: World, epochs_of: Callable[[Replies], frozenset[str]]) -> World:
    """The world without what belongs to epochs that nobody can ever begin again, nor a server be in.

    Their entries can never be read and their answers never be kept, so worlds that differ only in them are one.
    """
    postgres = world.postgres
    alive = {place.epoch for place in (*postgres.wal, *postgres.dead)}
    alive |= {_epoch(redis.state) for redis in (world.redis, world.behind) if redis is not None}
    alive = alive.union(*map(epochs_of, world.doing))
    fills = tuple(fill for fill in world.fills if fill.place.epoch in alive)
    ended = tuple(one for one in postgres.ended if one[0].epoch in alive)
    return world._replace(
        postgres=postgres._replace(ended=ended) if len(ended) < len(postgres.ended) else postgres,
        redis=_living(world.redis, alive),
        behind=None if world.behind is None else _living(world.behind, alive),
        fills=fills,
    )


def _living(redis: Redis, alive: set[str]) -> Redis:
    entries = tuple(
        entry for entry in redis.entries if not entry[0].startswith(b"lk:") or entry[0].decode().split(":")[1] in alive
    )
    epochs = tuple(one for one in redis.epochs or () if one[0].decode() in alive) or None
    if len(entries) == len(redis.entries) and epochs == redis.epochs:
        return redis
    return redis._replace(entries=entries, epochs=epochs)


def _epoch(state: bytes | None) -> str:
    return (state or b"").split(b" ")[0].decode()
