"""The scripts as functions from one Redis to the next, each run once for what it can see."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib.resources import files

from cache.state import State
from tests.model.port import Lua, MemoryRedis, Value
from tests.model.world import Redis

_NAMES = ("apply", "epoch", "fill", "beat")
_FIELDS = {"state": 0, "tags": 1, "floor": 2, "samples": 3, "epochs": 4}
_LUA = Lua()
_Held = bytes | tuple[tuple[bytes, float], ...] | None


def real_texts() -> dict[str, str]:
    """The scripts as they are."""
    return {name: files("cache").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8") for name in _NAMES}


@functools.cache
def state_of(raw: bytes | None) -> State | None:
    return State.parse(raw)


class Scripts:
    """Four scripts. What one does depends on its keys, its arguments and the clock, so it is run once for each."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self.replies: set[tuple[str, str]] = set()
        self._known: dict[object, tuple[str, tuple[tuple[_Held, int | None], ...]]] = {}

    def run(
        self, name: str, redis: Redis, keys: Sequence[str], arguments: Sequence[object], now: int
    ) -> tuple[str, Redis]:
        """The reply and what Redis then is. Keys that are not of the silo itself are entries."""
        before = tuple(_held(redis, key) for key in keys)
        call = (name, tuple(keys), before, tuple(arguments), now)
        known = self._known.get(call)
        if known is None:
            known = self._known[call] = self._run(name, keys, before, arguments, now)
        reply, after = known
        return reply, _with(redis, keys, before, after)

    def _run(
        self, name: str, keys: Sequence[str], before: Sequence[_Held], arguments: Sequence[object], now: int
    ) -> tuple[str, tuple[tuple[_Held, int | None], ...]]:
        data: dict[bytes, Value] = {}
        for key, held in zip(keys, before, strict=True):
            if held is not None:
                data[key.encode()] = dict(held) if isinstance(held, tuple) else held
        memory = MemoryRedis(data, now_ms=now)
        words = [word if isinstance(word, bytes) else str(word).encode() for word in arguments]
        reply = _LUA.run(self._texts[name], memory, [key.encode() for key in keys], words)
        self.replies.add((name, reply.decode()))
        after = tuple((_frozen(memory.data.get(key.encode())), memory.lives.get(key.encode())) for key in keys)
        return reply.decode(), tuple((held, None if life is None else now + life) for held, life in after)


def _held(redis: Redis, key: str) -> _Held:
    if key == "feed":
        return None
    number = _FIELDS.get(key)
    return redis[number] if number is not None else redis.entry(key.encode())  # type: ignore[return-value]


def _frozen(value: Value | None) -> _Held:
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return None if isinstance(value, list) else value


def _with(
    redis: Redis, keys: Sequence[str], before: Sequence[_Held], after: Sequence[tuple[_Held, int | None]]
) -> Redis:
    changed: dict[str, object] = {}
    for key, old, (new, ends) in zip(keys, before, after, strict=True):
        if key in _FIELDS:
            if new != old:
                changed[key] = new
        elif key != "feed" and (new != old or ends is not None):
            redis = redis.without(key.encode())
            if isinstance(new, bytes):
                redis = redis._replace(entries=tuple(sorted((*redis.entries, (key.encode(), new, ends or 1 << 40)))))
    return redis._replace(**changed) if changed else redis  # type: ignore[arg-type]
