"""Protocols that are wrong: those that others use, and this one with one of its conditions taken out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cache.state import Position
from tests.model.follower import Follower, Question
from tests.model.judge import Reading
from tests.model.moves import Model, Move
from tests.model.scripts import real_texts, state_of
from tests.model.world import Fill, Rules, World, entry_key

_APPLY_TAGS = "redis.call('ZADD', KEYS[2], unpack(members))"
_FILL_TAGS = """  if score and tonumber(score) > seq then
    return 'tag'
  end
"""


class DoubleDelete(Model):
    """APPLY deletes the entries, and so does a second deletion later; whatever is there is served.

    It promises nothing before the second deletion, so until then nothing is held against it.
    """

    def wrong(self, world: World) -> str | None:
        return None if world.more else self.judge.wrong_now(world)

    def counts(self, reading: Reading) -> bool:
        state = state_of(reading.state)
        return state is not None and state.epoch == reading.epoch

    def apply_keys(self, expected: bytes, tags: tuple[str, ...]) -> tuple[str, ...]:
        return (*super().apply_keys(expected, tags), *_entries(expected, tags))

    def after_apply(self, world: World, question: Question, reply: str) -> World:
        expected, _, _, tags = question.words
        later = tuple(key.encode() for key in _entries(expected, tags))
        return world._replace(more=tuple(sorted((*world.more, later)))) if reply == "applied" and later else world

    def moves(self, world: World) -> Iterator[Move]:
        yield from super().moves(world)
        for keys in dict.fromkeys(world.more):
            redis = world.redis
            for key in keys:
                redis = redis.without(key)
            more = list(world.more)
            more.remove(keys)
            yield Move("the second deletion", world._replace(redis=redis, more=tuple(more)))


class Lease(Model):
    """A miss takes a lease; APPLY deletes entry and lease; FILL stores for the lease that is still there."""

    def wrong(self, world: World) -> str | None:
        return self.judge.wrong_now(world)

    def counts(self, reading: Reading) -> bool:
        state = state_of(reading.state)
        return state is not None and state.epoch == reading.epoch

    def apply_keys(self, expected: bytes, tags: tuple[str, ...]) -> tuple[str, ...]:
        leases = tuple(f"lease:{key}" for key in _entries(expected, tags))
        return (*super().apply_keys(expected, tags), *_entries(expected, tags), *leases)

    def moves(self, world: World) -> Iterator[Move]:
        yield from super().moves(world)
        state = state_of(world.redis.state)
        for lookup in "AB" if state is not None and len(world.more) < self.rules.fills else "":
            key = entry_key(state.epoch, lookup) if state is not None else b""
            lease = b"lease:" + key
            if world.redis.entry(key) is None and world.redis.entry(lease) is None:
                token = b"%d" % len(world.redis.entries) + lookup.encode()
                entries = tuple(sorted((*world.redis.entries, (lease, token, 1 << 40))))
                after = world._replace(redis=world.redis._replace(entries=entries), more=(*world.more, (key, token)))
                yield Move(f"a miss of {lookup} takes a lease", after)

    def _filling(self, world: World) -> Iterator[Move]:
        for held in world.more:
            key, token = held
            for place in sorted(world.postgres.replicas()):
                lookup = key.decode()[-1]
                if entry_key(place.epoch, lookup) == key and len(world.fills) < self.rules.fills:
                    fills = tuple(sorted((*world.fills, Fill(lookup, place, token))))
                    more = tuple(other for other in world.more if other != held)
                    yield Move(f"lookup {lookup} reads {place}", world._replace(fills=fills, more=more))
        for move in super()._filling(world):
            if move.label.startswith("FILL"):
                yield move

    def snapshots(self, _world: World) -> Iterator[Fill]:
        yield from ()

    def fill_call(self, fill: Fill) -> tuple[tuple[str, ...], tuple[object, ...]]:
        keys, arguments = super().fill_call(fill)
        return (*keys, f"lease:{keys[-1]}"), (*arguments[:-1], fill.token)


class NoMark(Model):
    """A reader that does not ask for the epoch's mark."""

    def counts(self, reading: Reading) -> bool:
        return super().counts(reading._replace(tags=reading.tags._replace(marked=True)))


class StateLast(Model):
    """A reader that asks for `state` after the tags."""

    order = ("entry", "tags", "state")


class _Reusing(Follower):
    async def _mint(self, expected: bytes, tip: Any, time_ms: int, reason: str) -> bool:
        if reason == "no_state":
            position: Position = tip.position
            return await self._begin(expected, tip, position, time_ms, reason)
        return await super()._mint(expected, tip, time_ms, reason)


class EpochReused(Model):
    """An invalidator that finds Redis empty and goes on with the epoch that there was."""

    follower = _Reusing


def _entries(expected: bytes, tags: tuple[str, ...]) -> tuple[str, ...]:
    epoch = expected.split(b" ")[0].decode()
    return tuple(entry_key(epoch, tag[0]).decode() for tag in tags)


@dataclass(frozen=True)
class Mutant:
    """A model with its scripts edited (script, text, what stands there instead), and a world that shows it."""

    name: str
    rules: Rules
    edits: tuple[tuple[str, str, str], ...] = ()
    model: type[Model] = Model

    def made(self) -> Model:
        texts = real_texts()
        for script, old, new in self.edits:
            assert texts[script].count(old) == 1, f"{self.name}: {script}.lua is not what this mutant was made from"
            texts[script] = texts[script].replace(old, new)
        return self.model(self.rules, texts)


_MOVES = Rules("", ("m", "b"), invalidators=1)
_TOO_LARGE = Rules("", ("x", "m"), invalidators=1)
_TRIMMED = Rules("", ("a", "b"), invalidators=1, faults={"tick": 2})
_SET_BACK = Rules("", ("a", "x"), invalidators=1, faults={"back": 1})
_NOT_MOVED = "if not state or string.sub(state, 1, #ARGV[1]) ~= ARGV[1] then"
_EPOCH_CHECK = """if epoch ~= ARGV[1] then
  return 'epoch'
end
"""
_STORE = "redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[4])"
_USED = "if redis.call('ZSCORE', KEYS[6], ARGV[2]) then"
_ENDED = "if ended then"

MUTANTS = (
    Mutant("naive SET", _TOO_LARGE, (("fill", _EPOCH_CHECK, f"{_STORE}\nif epoch then return 'stored' end\n"),)),
    Mutant(
        "delayed double delete",
        _MOVES,
        (("apply", _APPLY_TAGS, "redis.call('UNLINK', unpack(KEYS, 6))"), ("fill", _FILL_TAGS, "")),
        DoubleDelete,
    ),
    Mutant(
        "lease",
        _MOVES,
        (
            ("apply", _APPLY_TAGS, "redis.call('UNLINK', unpack(KEYS, 6))"),
            ("fill", _FILL_TAGS, "if redis.call('GET', KEYS[5]) ~= ARGV[i] then return 'lease' end\n"),
            ("fill", _STORE, f"redis.call('UNLINK', KEYS[5])\n{_STORE}"),
        ),
        Lease,
    ),
    Mutant("no epoch in FILL", _TOO_LARGE, (("fill", _EPOCH_CHECK, ""),)),
    Mutant(
        "epoch reused on an empty Redis",
        Rules("", ("m",), invalidators=1, faults={"flush": 1}),
        (
            ("epoch", "redis.call('SET', KEYS[3], ARGV[3])", "redis.call('SET', KEYS[3], '0')"),
            ("epoch", _USED, "if false then"),
        ),
        EpochReused,
    ),
    Mutant("no tags in FILL", _TRIMMED, (("fill", _FILL_TAGS, ""),)),
    Mutant("no tag of the before image", _MOVES, (("apply", "for i = 6, #ARGV do", "for i = 7, #ARGV do"),)),
    Mutant("the floor is not raised", _TRIMMED, (("apply", "redis.call('SET', KEYS[3], half)", ""),)),
    Mutant(
        "an epoch begins without a floor",
        _TOO_LARGE,
        (("epoch", "redis.call('SET', KEYS[3], ARGV[3])", "redis.call('SET', KEYS[3], '0')"),),
    ),
    Mutant(
        "APPLY does not compare",
        Rules("", ("a", "b"), invalidators=1, faults={"redis": 1}),
        (("apply", _NOT_MOVED, "if not state then"),),
    ),
    Mutant(
        "BEAT does not compare",
        Rules("", ("a",), invalidators=1, fills=0, beats=True, faults={"tick": 1, "redis": 1}),
        (("beat", _NOT_MOVED, "if not state then"),),
    ),
    Mutant("an epoch is begun twice", _SET_BACK, (("epoch", _USED, "if false then"),)),
    Mutant(
        "an epoch is forgotten though it has just ended",
        Rules("", ("a", "x"), invalidators=1, faults={"back": 1, "tick": 2}),
        (("epoch", _ENDED, "if false then"),),
    ),
    Mutant("entries that live longer than tags", Rules("", ("a", "b"), 1, life_ms=3, faults={"tick": 2})),
    Mutant("a reader without the mark", Rules("", ("a", "x"), 1, reads_in_steps=True), (), NoMark),
    Mutant("a reader that asks for the state last", Rules("", ("a",), 1, reads_in_steps=True), (), StateLast),
)
