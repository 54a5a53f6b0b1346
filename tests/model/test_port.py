"""The model's Redis does what the real one does, so what the search finds holds for the real one."""

from __future__ import annotations

import random
import struct
from importlib.resources import files

import pytest
from redis.asyncio import Redis

from tests.model.port import Lua, MemoryRedis, Refused, Value

_FIXED = [b"state", b"tags", b"floor", b"samples", b"feed", b"epochs"]
_ENTRIES = [b"entry1", b"entry2"]
_FEED = 20
# Shadows `redis` by one whose TIME is the last argument: both sides then have the same clock and nothing else differs.
_CLOCKED = """
local given = table.remove(ARGV)
local server = redis
local redis = {call = function(name, ...)
  if name == 'TIME' then
    return {string.format('%d', given / 1000), string.format('%d', given % 1000 * 1000)}
  end
  return server.call(name, ...)
end, pcall = server.pcall}
"""
Step = tuple[str, list[bytes], list[bytes]]


def _text(name: str) -> str:
    return files("cache").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


class _Caller:
    """Makes up calls that mostly fit what the database holds, as a caller would, and sometimes do not."""

    def __init__(self, seed: int, retention_ms: int) -> None:
        self.random = random.Random(seed)
        self.retention = retention_ms
        self.now = 1_795_000_000_000
        self.epochs = 0

    def next(self, data: dict[bytes, Value]) -> Step:
        self._pass_time()
        state = data.get(b"state")
        words = state.split(b" ") if isinstance(state, bytes) else [b"none", b"0", b"i0", b"d", b"s", b"0"]
        kind = self.random.choices(("apply", "fill", "beat", "epoch", "lose"), (48, 35, 6, 7, 1))[0]
        if state is None and self.random.random() < 0.7:
            kind = "epoch"
        step: Step = getattr(self, f"_{kind}")(words, state)
        return step

    def _pass_time(self) -> None:
        if self.random.random() < 0.7:
            self.now += self.random.randrange(max(2, self.retention // 8))
        elif self.random.random() < 0.1:
            self.now -= self.random.randrange(self.retention)

    def _expected(self, words: list[bytes]) -> bytes:
        wrong = self.random.random() < 0.08
        epoch, seq, row_id = words[0], words[1], b"other" if wrong else words[2]
        return b" ".join((epoch, seq, row_id)) + b" "

    def _tags(self) -> list[bytes]:
        most = 3 if self.random.random() < 0.95 else 2_200
        return [b"tag%d" % self.random.randrange(max(8, most)) for _ in range(self.random.randint(0, most))]

    def _clock(self, arguments: list[bytes]) -> list[bytes]:
        return [*arguments, b"%d" % self.now]

    def _apply(self, words: list[bytes], _state: object) -> Step:
        seq = int(words[1]) + 1
        arguments = [self._expected(words), b"%d" % seq, b"i%d" % seq, b"%d" % self.retention, b"%d" % _FEED]
        return "apply", _FIXED[:5], self._clock(arguments + self._tags())

    def _fill(self, words: list[bytes], _state: object) -> Step:
        seq = max(0, int(words[1]) + self.random.randint(-12, 3))
        epoch = words[0] if self.random.random() < 0.9 else b"e0"
        definition = words[3] if self.random.random() < 0.95 else b"d2"
        value = struct.pack(">BBQ", 1, 0, seq) + b"answer" if self.random.random() < 0.95 else b"broken"
        life = 1_000_000 * self.random.randint(1, 9)
        replaces = b"1" if self.random.random() < 0.1 else b"0"
        arguments = [epoch, b"%d" % seq, definition, b"%d" % life, replaces, value, *self._tags()[:4]]
        return "fill", [*_FIXED[:3], self.random.choice(_ENTRIES)], self._clock(arguments)

    def _beat(self, words: list[bytes], _state: object) -> Step:
        time = self.now + self.random.randint(-500, 500)
        return "beat", _FIXED[:1], self._clock([self._expected(words), b"%d" % time])

    def _epoch(self, words: list[bytes], state: object) -> Step:
        expected = self._expected(words) if state is not None or self.random.random() < 0.1 else b""
        self.epochs += 1
        epoch = b"e%d" % (self.epochs if self.random.random() < 0.5 else self.random.randint(0, self.epochs))
        arguments = [expected, epoch, b"%d" % (int(words[1]) + self.random.randint(0, 3)), b"i9", b"d", b"server"]
        return "epoch", _FIXED, self._clock([*arguments, b"%d" % self.now, b"%d" % self.retention, b"%d" % _FEED])

    def _lose(self, _words: list[bytes], _state: object) -> Step:
        lost = _FIXED + _ENTRIES if self.random.random() < 0.3 else [self.random.choice(_FIXED + _ENTRIES)]
        return "lose", lost, []


def _memory_shape(redis: MemoryRedis) -> dict[bytes, object]:
    shape: dict[bytes, object] = {}
    for key, value in redis.data.items():
        shape[key] = sorted(value.items()) if isinstance(value, dict) else value
        if isinstance(value, list):
            shape[key] = value[-_FEED:]
        if key in redis.lives:
            shape[key + b" lives"] = redis.lives[key]
    return shape


async def _real_shape(redis: Redis) -> dict[bytes, object]:
    async with redis.pipeline() as pipe:
        for key in (b"state", b"floor", *_ENTRIES):
            pipe.get(key)
        for key in (b"tags", b"samples", b"epochs"):
            pipe.zrange(key, 0, -1, withscores=True)
        pipe.xrevrange(b"feed", count=_FEED)
        for key in _ENTRIES:
            pipe.pttl(key)
        found = await pipe.execute()
    shape: dict[bytes, object] = dict(zip((b"state", b"floor", *_ENTRIES), found[:4], strict=True))
    for key, members in zip((b"tags", b"samples", b"epochs"), found[4:7], strict=True):
        shape[key] = sorted((member, score) for member, score in members)
    shape[b"feed"] = [tuple(word for pair in fields.items() for word in pair) for _, fields in reversed(found[7])]
    for key, left in zip(_ENTRIES, found[8:], strict=True):
        # The real clock has run since: to the next million milliseconds, of which every life has a whole number.
        shape[key + b" lives"] = -(-left // 1_000_000) * 1_000_000 if left > 0 else None
    return {key: value for key, value in shape.items() if value}


async def _run(redis: Redis, step: Step, texts: dict[str, str]) -> bytes:
    name, keys, arguments = step
    if name == "lose":
        return b"%d" % await redis.unlink(*keys)
    return bytes(await redis.execute_command("EVAL", texts[name], len(keys), *keys, *arguments))  # type: ignore[no-untyped-call]


def _run_in_memory(lua: Lua, redis: MemoryRedis, step: Step, texts: dict[str, str]) -> bytes:
    name, keys, arguments = step
    if name == "lose":
        redis.declared = frozenset(keys)
        return str(redis.call(b"UNLINK", *keys)).encode()
    return lua.run(texts[name], redis, keys, arguments)


@pytest.mark.parametrize(
    ("seed", "retention_ms", "steps"),
    [(1, 64, 1_000), (2, 1_000, 800), (3, 333, 700), (4, 172_800_000, 600)],
    ids=["trims-at-once", "trims", "odd-retention", "real-retention"],
)
async def test_the_scripts_do_the_same_on_the_models_redis_and_on_the_real_one(
    redis_url: str, seed: int, retention_ms: int, steps: int
) -> None:
    """Thousands of calls, most that fit and some that do not: no reply and no key differs after any of them."""
    texts = {name: _CLOCKED + _text(name) for name in ("apply", "fill", "beat", "epoch")}
    lua, memory, caller = Lua(), MemoryRedis(), _Caller(seed, retention_ms)
    replies: dict[str, set[bytes]] = {name: set() for name in (*texts, "lose")}
    async with Redis.from_url(redis_url) as redis:
        for number in range(steps):
            step = caller.next(memory.data)
            real, ported = await _run(redis, step, texts), _run_in_memory(lua, memory, step, texts)
            assert ported == real, f"call {number}: {step}"
            assert _memory_shape(memory) == await _real_shape(redis), f"call {number}: {step}"
            replies[step[0]].add(real)
    assert replies["apply"] == {b"applied", b"moved", b"lost"}
    assert replies["epoch"] == {b"begun", b"moved", b"used"}
    assert replies["beat"] == {b"beaten", b"moved"}
    assert replies["fill"] >= {b"stored", b"kept", b"tag", b"floor", b"epoch", b"definition", b"no_tags"}


async def test_an_entry_of_another_type_gives_way_on_both(redis_url: str) -> None:
    """FILL replaces what the protocol never wrote, on the model's Redis and on the real one alike."""
    texts = {name: _CLOCKED + _text(name) for name in ("epoch", "fill")}
    lua, memory, now = Lua(), MemoryRedis(), b"1795000000000"
    begin = [b"", b"e1", b"1", b"i1", b"d", b"server", now, b"1000", b"20", now]
    value = struct.pack(">BBQ", 1, 0, 1) + b"answer"
    fill = [b"e1", b"1", b"d", b"1000000", b"0", value, now]
    steps: list[Step] = [("epoch", _FIXED, begin), ("fill", [*_FIXED[:3], _ENTRIES[0]], fill)]
    async with Redis.from_url(redis_url) as redis:
        for step in steps:
            if step[0] == "fill":
                memory.data[_ENTRIES[0]] = {b"not": 1.0}
                await redis.zadd(_ENTRIES[0], {b"not": 1.0})
            real, ported = await _run(redis, step, texts), _run_in_memory(lua, memory, step, texts)
            assert ported == real
        assert real == b"stored"
        assert await redis.get(_ENTRIES[0]) == memory.data[_ENTRIES[0]] == value


@pytest.fixture(scope="module")
def lua() -> Lua:
    return Lua()


def test_what_is_not_ported_is_refused(lua: Lua) -> None:
    """A script that begins to use another command fails here and does not pass by luck."""
    with pytest.raises(Refused):
        lua.run("return redis.call('HGET', KEYS[1], 'a')", MemoryRedis(), [b"state"], [])


def test_a_script_touches_only_the_keys_that_it_declares(lua: Lua) -> None:
    """In a cluster an undeclared key may live elsewhere."""
    with pytest.raises(Refused):
        lua.run("return redis.call('GET', 'tags')", MemoryRedis(), [b"state"], [])


def test_a_script_has_no_globals(lua: Lua) -> None:
    """Redis refuses a script that sets one; so does the model."""
    with pytest.raises(Exception, match="uses the global forgotten"):
        lua.run("forgotten = 1 return 'ok'", MemoryRedis(), [], [])
