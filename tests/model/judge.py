"""What must hold in every world."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.model.scripts import state_of
from tests.model.world import LOOKUPS, Place, Postgres, Redis, Rules, World, entry_key, tag_of

if TYPE_CHECKING:
    from tests.model.moves import Model

_MOST_QUESTIONS = 40


class Tags(NamedTuple):
    """What ZMSCORE says: whether the epoch's mark is there, and the newest change of an answer's tags."""

    marked: bool
    newest: float


class Reading(NamedTuple):
    """What a reader goes by, whose keys are of `epoch`."""

    lookup: str
    epoch: str
    state: bytes
    entry: bytes
    tags: Tags


class Judge:
    """Finds what is wrong with a world; None when nothing is."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rules: Rules = model.rules
        self._missing: dict[Reading, frozenset[str]] = {}
        self._settled: dict[tuple[Redis, Postgres, int], tuple[Redis, Postgres] | str] = {}

    def wrong(self, world: World) -> str | None:
        return (
            self.wrong_now(world) or self._wrong_time(world) or self._wrong_replica(world) or self._wrong_at_rest(world)
        )

    # What Redis answers

    def wrong_now(self, world: World) -> str | None:
        """What is wrong with what a reader could be served at once."""
        return self._wrong_entries(world, world.redis, world.redis)

    def tags_of(self, redis: Redis, epoch: str, lookup: str) -> Tags:
        state = state_of(redis.state)
        definition = state.position.definition if state is not None else "d0"
        scores = dict(redis.tags or ())
        return Tags(f"={epoch}".encode() in scores, scores.get(tag_of(lookup, definition).encode(), -1.0))

    def wrong_reading(self, reading: Reading) -> str | None:
        """Whether a change at or below the as-of is missing from what is served, lost by a failover since or not."""
        if reading not in self._missing:
            self._missing[reading] = self._missing_from(reading)
        missing = self._missing[reading]
        if not missing:
            return None
        at, answer = _path_of(reading.state), _path_in(reading.entry)
        return f"lookup {reading.lookup} is served as of {at!r} without {sorted(missing)}: it was read at {answer!r}"

    def _missing_from(self, reading: Reading) -> frozenset[str]:
        if not self._model.counts(reading):
            return frozenset()
        about = self._rules.about
        return about(_path_of(reading.state), reading.lookup) - about(_path_in(reading.entry), reading.lookup)

    def _wrong_entries(self, world: World, entries: Redis, redis: Redis, *, at_rest: bool = False) -> str | None:
        """What is wrong with any entry that counts; at rest it has to be the database's own answer."""
        state = state_of(redis.state)
        if state is None or redis.state is None:
            return None
        tip = world.postgres.tip
        for lookup in LOOKUPS:
            entry = entries.entry(entry_key(state.epoch, lookup))
            if entry is None:
                continue
            reading = Reading(lookup, state.epoch, redis.state, entry, self.tags_of(redis, state.epoch, lookup))
            wrong = self.wrong_reading(reading)
            if wrong is not None:
                return wrong
            if not at_rest or not self._model.counts(reading):
                continue
            if self._rules.about(_path_in(entry), lookup) != self._rules.about(tip.path, lookup):
                return f"at rest lookup {lookup} is served from {_path_in(entry)!r}; the database is at {tip.path!r}"
        return None

    # How old it is

    def _wrong_time(self, world: World) -> str | None:
        state = state_of(world.redis.state)
        if state is None:
            return None
        place = Place(state.epoch, _path_of(world.redis.state))
        last = world.now if place == world.postgres.tip else dict(world.postgres.ended).get(place, 0)
        if state.time_ms > last:
            return f"state says that it was the tip at {state.time_ms}; it was last at {last}"
        return None

    def _wrong_replica(self, world: World) -> str | None:
        """A replica's answer is given `state.time` when it is at the state's position or after it, in its epoch."""
        state = state_of(world.redis.state)
        if state is None:
            return None
        for place in world.postgres.replicas():
            if place.epoch == state.epoch and len(place.path) >= state.seq:
                missing = set(_path_of(world.redis.state)) - set(place.path)
                if missing & set(world.postgres.tip.path):
                    return f"a replica at {place} is said to be as new as {world.redis.state!r}"
        return None

    # At rest

    def _wrong_at_rest(self, world: World) -> str | None:
        meta = world.redis._replace(entries=())
        postgres = world.postgres._replace(wal=(world.postgres.tip,), first=0, second=None, dead=(), ended=())
        known = (meta, postgres, world.now)
        if known not in self._settled:
            self._settled[known] = self.settle(meta, postgres, world.now)
        settled = self._settled[known]
        if isinstance(settled, str):
            return settled
        return self._wrong_entries(world, world.redis, settled[0], at_rest=True)

    def settle(self, redis: Redis, postgres: Postgres, now: int) -> tuple[Redis, Postgres] | str:
        """Redis and the silo once one invalidator has run for as long as it finds anything to do."""
        replies: tuple[object, ...] = ()
        for _ in range(_MOST_QUESTIONS):
            before = redis, postgres
            _, reply, postgres, redis = self._model.answered(replies, postgres, redis, now)
            replies = (*replies, reply)
            if self._model.followers.next(replies) is None:
                state = state_of(redis.state)
                at_tip = state is not None and Place(state.epoch, _path_of(redis.state)) == postgres.tip
                if at_tip and before == (redis, postgres):
                    return redis, postgres
                replies = ()
        return f"the invalidators never come to rest: {redis.state!r}, {postgres.tip}"


def seq_of(entry: bytes) -> int:
    return int.from_bytes(entry[2:10], "big")


def _path_in(entry: bytes) -> str:
    return entry[10:].decode()


def _path_of(raw: bytes | None) -> str:
    state = state_of(raw)
    return state.position.id[1:] if state is not None else ""
