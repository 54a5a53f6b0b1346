"""All that can happen next in a world."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from cache.state import Position
from tests.model.follower import Follower, Followers, Question, TipRow
from tests.model.judge import Judge, Reading, seq_of
from tests.model.scripts import Scripts, real_texts, state_of
from tests.model.world import (
    FEED_LENGTH,
    Fill,
    Place,
    Postgres,
    Reader,
    Redis,
    Replies,
    Rules,
    World,
    beginning,
    entry_key,
    living,
    row_id,
    tag_of,
)

_MOST_MINTS = 9
_STATE_KEYS = ("state", "tags", "floor", "samples", "feed", "epochs")
_HEADER = struct.Struct(">BBQ")


class Move(NamedTuple):
    """What happens, the world after it, and what is wrong with it, if that shows only here."""

    label: str
    world: World
    wrong: str | None = None


class Model:
    """The protocol as it is, under some rules. A mutant is another one, with other scripts or another reader."""

    order = ("state", "entry", "tags")
    follower: type[Follower] = Follower

    def __init__(self, rules: Rules, texts: dict[str, str] | None = None) -> None:
        self.rules = rules
        self.scripts = Scripts(texts or real_texts())
        self.followers = Followers(self.follower, beats=rules.beats)
        self.judge = Judge(self)
        self._faults = tuple(rules.faults)

    def beginning(self) -> World:
        world = beginning(self.rules)
        if self.rules.from_nothing:
            return world
        settled = self.judge.settle(world.redis, world.postgres, world.now)
        assert not isinstance(settled, str), settled
        redis, postgres = settled
        return world._replace(
            redis=redis,
            postgres=postgres.replayed(
                len(postgres.wal) - 1, None if postgres.second is None else len(postgres.wal) - 1
            ),
        )

    def living(self, world: World) -> World:
        return living(world, self.followers.epochs)

    def wrong(self, world: World) -> str | None:
        return self.judge.wrong(world)

    def moves(self, world: World) -> Iterator[Move]:
        yield from self._following(world)
        yield from self._filling(world)
        yield from self._changing(world)
        yield from self._failing(world)
        if self.rules.reads_in_steps:
            yield from self._reading(world)

    # Invalidators

    def _following(self, world: World) -> Iterator[Move]:
        # Invalidators are alike, so of two in the same place only one is looked at.
        for replies in dict.fromkeys(world.doing):
            question, reply, postgres, redis = self.answered(replies, world.postgres, world.redis, world.now)
            further = (*replies, reply)
            if self.followers.next(further) is None:
                further = ()
            doing = list(world.doing)
            doing[doing.index(replies)] = further
            after = world._replace(postgres=postgres, redis=redis, doing=tuple(sorted(doing, key=repr)))
            if question.kind == "apply":
                after = self.after_apply(after, question, str(reply))
            yield Move(f"invalidator: {_asked(question)} -> {_replied(question, reply)}", after)

    def answered(
        self, replies: Replies, postgres: Postgres, redis: Redis, now: int
    ) -> tuple[Question, object, Postgres, Redis]:
        """What an invalidator asks after these replies, what it is told, and what that changes."""
        question = self.followers.next(replies)
        assert question is not None
        reply: object
        if question.kind == "look":
            # Without beats its time is of no use, and would only multiply the worlds.
            reply = (redis.state, now if self.rules.beats else 0)
        elif question.kind == "tip":
            reply = self._tip(postgres, *question.words)
        elif question.kind == "mint":
            postgres, reply = self._mint(postgres, now, *question.words)
        else:
            reply, redis = self._run(question, redis, now)
        return question, reply, postgres, redis

    def _tip(self, postgres: Postgres, seq: int) -> TipRow:
        epoch, path = postgres.tip
        there = row_id(path[:seq]) if postgres.log_from <= seq <= len(path) else None
        rows = tuple(
            (number, row_id(path[:number]), self.rules.tags(path[:number]))
            for number in range(max(seq + 1, postgres.log_from, 1), len(path) + 1)
        )
        definition = self.rules.definition(path)
        return TipRow(f"s{postgres.server}", epoch, len(path), row_id(path), definition, there, rows)

    def _mint(self, postgres: Postgres, now: int, expected: str) -> tuple[Postgres, TipRow | None]:
        if postgres.tip.epoch != expected:
            return postgres, None
        postgres = self._minted(postgres, postgres.tip.path, now)
        return postgres, self._tip(postgres, len(postgres.tip.path))

    def _minted(self, postgres: Postgres, path: str, now: int) -> Postgres:
        assert postgres.mints < _MOST_MINTS, "the invalidators never stop minting epochs"
        minted = postgres._replace(mints=postgres.mints + 1)
        return minted.advanced(Place(f"e{minted.mints}", path), now)

    def _run(self, question: Question, redis: Redis, now: int) -> tuple[str, Redis]:
        words: Any = question.words
        if question.kind == "apply":
            expected, seq, name, tags = words
            arguments = (expected, seq, name, self.rules.retention_ms, FEED_LENGTH, *tags)
            return self.scripts.run("apply", redis, self.apply_keys(expected, tags), arguments, now)
        if question.kind == "epoch":
            expected, at, server, time_ms = words
            arguments = (
                expected,
                at.epoch,
                at.seq,
                at.id,
                at.definition,
                server,
                time_ms,
                self.rules.retention_ms,
                FEED_LENGTH,
            )
            return self.scripts.run("epoch", redis, _STATE_KEYS, arguments, now)
        return self.scripts.run("beat", redis, _STATE_KEYS[:1], words, now)

    def apply_keys(self, _expected: bytes, _tags: tuple[str, ...]) -> tuple[str, ...]:
        return _STATE_KEYS[:5]

    def after_apply(self, world: World, _question: Question, _reply: str) -> World:
        return world

    # Fills

    def _filling(self, world: World) -> Iterator[Move]:
        if len(world.fills) < self.rules.fills:
            for fill in self.snapshots(world):
                if fill not in world.fills:
                    fills = tuple(sorted((*world.fills, fill)))
                    yield Move(f"lookup {fill.lookup} reads {_place(fill.place)}", world._replace(fills=fills))
        for fill in world.fills:
            fills = tuple(other for other in world.fills if other != fill)
            reply, redis = self.fill(world, fill)
            yield Move(
                f"FILL {fill.lookup} as read at {_place(fill.place)} -> {reply}",
                world._replace(fills=fills, redis=redis),
            )

    def snapshots(self, world: World) -> Iterator[Fill]:
        """What any lookup could read of any server now."""
        places = set() if self.rules.from_primary else world.postgres.replicas()
        for place in sorted(places | ({world.postgres.tip} if self.rules.from_primary else set())):
            for lookup in "AB":
                yield Fill(lookup, place)

    def fill(self, world: World, fill: Fill) -> tuple[str, Redis]:
        keys, arguments = self.fill_call(fill)
        return self.scripts.run("fill", world.redis, keys, arguments, world.now)

    def fill_call(self, fill: Fill) -> tuple[tuple[str, ...], tuple[object, ...]]:
        """The keys and arguments of FILL, as `Store` and `Group.keep` send them."""
        epoch, path = fill.place
        definition = self.rules.definition(path)
        value = _HEADER.pack(1, 0, len(path)) + path.encode()
        tag = tag_of(fill.lookup, definition)
        arguments = (epoch, len(path), definition, self.rules.life_ms, 0, value, tag)
        return (*_STATE_KEYS[:3], entry_key(epoch, fill.lookup).decode()), arguments

    # The silo

    def _changing(self, world: World) -> Iterator[Move]:
        rules, postgres = self.rules, world.postgres
        if postgres.commits < len(rules.programme):
            word = rules.programme[postgres.commits]
            row = sum(map(len, rules.programme[: postgres.commits]))
            path = postgres.tip.path + "".join(chr(ord("a") + row + n) for n in range(len(word)))
            after = postgres._replace(commits=postgres.commits + 1)
            if word in {"x", "d"} or (rules.minds_server and postgres.writer != postgres.server):
                after = self._minted(after, path, world.now)
            else:
                after = after.advanced(Place(postgres.tip.epoch, path), world.now)
            yield Move(f"the applier commits {word}: {_place(after.tip)}", world._replace(postgres=after))
        first, second, last = postgres.first, postgres.second, len(postgres.wal) - 1
        if first < last:
            after = postgres.replayed(first + 1, second)
            yield Move(f"the replica replays {_place(after.wal[after.first])}", world._replace(postgres=after))
        if second is not None and second < last:
            after = postgres.replayed(first, second + 1)
            yield Move("the second replica replays", world._replace(postgres=after))
        if len(postgres.dead) > 1:
            after = postgres._replace(dead=postgres.dead[1:])
            yield Move(f"the dead replica replays {_place(after.dead[0])}", world._replace(postgres=after))

    # What goes wrong

    def _failing(self, world: World) -> Iterator[Move]:
        for number, name in enumerate(self._faults):
            if world.left[number]:
                left = (*world.left[:number], world.left[number] - 1, *world.left[number + 1 :])
                yield from getattr(self, f"_{name}")(world, world._replace(left=left))

    def _evict(self, world: World, after: World) -> Iterator[Move]:
        for key, _, _ in world.redis.entries:
            yield Move(f"{key.decode()} is evicted", after._replace(redis=world.redis.without(key)))

    def _flush(self, world: World, after: World) -> Iterator[Move]:
        if world.redis != Redis():
            yield Move("FLUSHALL", after._replace(redis=Redis()))

    def _lose(self, world: World, after: World) -> Iterator[Move]:
        for name in ("state", "tags", "floor", "samples", "epochs"):
            if getattr(world.redis, name) is not None:
                lost: dict[str, Any] = {name: None}
                yield Move(f"Redis loses {name}", after._replace(redis=world.redis._replace(**lost)))

    def _redis(self, world: World, after: World) -> Iterator[Move]:
        if world.behind is None:
            yield Move("Redis's replica falls behind from here", world._replace(behind=world.redis))
        elif world.behind != world.redis:
            yield Move("Redis fails over to it", after._replace(redis=world.behind, behind=None, reader=None))

    def _postgres(self, world: World, after: World) -> Iterator[Move]:
        old = world.postgres
        dead = () if old.second is None else old.wal[old.second :]
        new = old._replace(
            server=old.server + 1, wal=(old.wal[old.first],), first=0, second=None, dead=dead,
            ended=old.advanced(old.tip, world.now).ended,
        )  # fmt: skip
        yield Move(f"the replica is promoted at {_place(new.tip)}", after._replace(postgres=new))

    def _back(self, world: World, after: World) -> Iterator[Move]:
        old = world.postgres
        if old.first < len(old.wal) - 1:
            new = old._replace(wal=(old.wal[old.first],), first=0, ended=old.advanced(old.tip, world.now).ended)
            yield Move(f"the silo is set back to {_place(new.tip)}", after._replace(postgres=new))

    def _trim(self, world: World, after: World) -> Iterator[Move]:
        if world.postgres.log_from < len(world.postgres.tip.path):
            postgres = world.postgres._replace(log_from=len(world.postgres.tip.path))
            yield Move("the change log is trimmed", after._replace(postgres=postgres))

    def _tick(self, world: World, after: World) -> Iterator[Move]:
        now = world.now + 1
        behind = None if world.behind is None else _still_alive(world.behind, now)
        # A read under way does not outlive its deadline.
        after = after._replace(now=now, redis=_still_alive(world.redis, now), behind=behind, reader=None)
        yield Move(f"time passes: {now}", after)

    # Reading

    def counts(self, reading: Reading) -> bool:
        """Whether a reader would serve the entry: what `Store._serve_reads` and `Group._look_up` say."""
        state = state_of(reading.state)
        usable = state is not None and reading.tags.marked and state.epoch == reading.epoch
        return usable and seq_of(reading.entry) >= reading.tags.newest

    def _reading(self, world: World) -> Iterator[Move]:
        reader = world.reader
        if reader is None:
            state = state_of(world.redis.state)
            if state is not None:
                for lookup in "AB":
                    yield self._read_on(world, Reader(lookup, state.epoch))
        else:
            yield self._read_on(world, reader)

    def _read_on(self, world: World, reader: Reader) -> Move:
        part = self.order[len(reader.replies)]
        reply: object = world.redis.state
        if part == "entry":
            reply = world.redis.entry(entry_key(reader.epoch, reader.lookup))
        elif part == "tags":
            reply = self.judge.tags_of(world.redis, reader.epoch, reader.lookup)
        replies = (*reader.replies, reply)
        label = f"reader of {reader.lookup}: {part} is {reply!r}"
        if reply is None:
            return Move(label, world._replace(reader=None))
        if len(replies) < len(self.order):
            return Move(label, world._replace(reader=Reader(reader.lookup, reader.epoch, replies)))
        parts: dict[str, Any] = dict(zip(self.order, replies, strict=True))
        reading = Reading(reader.lookup, reader.epoch, parts["state"], parts["entry"], parts["tags"])
        return Move(label, world._replace(reader=None), self.judge.wrong_reading(reading))


def _still_alive(redis: Redis, now: int) -> Redis:
    return redis._replace(entries=tuple(entry for entry in redis.entries if entry[2] >= now))


def _place(place: Place) -> str:
    return f"({place.epoch} {place.path or '-'})"


def _asked(question: Question) -> str:
    words = [
        f"{word.epoch} {word.seq} {word.id}" if isinstance(word, Position) else str(word) for word in question.words
    ]
    return " ".join([question.kind.upper(), *words])


def _replied(question: Question, reply: object) -> str:
    if isinstance(reply, TipRow):
        return f"{reply.server} {reply.epoch} {reply.seq} {reply.id}"
    return str(reply[0] if question.kind == "look" and isinstance(reply, tuple) else reply)
