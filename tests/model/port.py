"""The commands of Redis that the cache's scripts use, in memory, and Lua 5.1 to run the scripts themselves on it.

`test_port.py` holds this against the real server: the same calls, the same replies, the same keys afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lupa import lua51  # type: ignore[import-untyped]

Zset = dict[bytes, float]
Fields = tuple[bytes, ...]
Value = bytes | Zset | list[Fields]
Reply = bytes | int | bool | list[bytes]

# The part of Redis's struct library that is used, and what its sandbox does to a name that nothing declares.
_SANDBOX = b"""
struct = {
  unpack = function(format, text, from)
    assert(format == '>I8', 'only >I8 is ported')
    local number = 0
    for i = from, from + 7 do
      number = number * 256 + string.byte(text, i)
    end
    return number, from + 8
  end
}
local function undeclared(_, name)
  error('the script uses the global ' .. tostring(name))
end
setmetatable(_G, {__index = undeclared, __newindex = undeclared})
"""


class Refused(Exception):
    """A command that Redis would refuse, or one that is not ported."""


class WrongType(Refused):
    """The key holds another kind of value than the command is for."""


class MemoryRedis:
    """One logical database. Keys never end by themselves: `lives` says what they were given, in milliseconds."""

    def __init__(self, data: dict[bytes, Value] | None = None, *, now_ms: int = 0) -> None:
        self.data: dict[bytes, Value] = {} if data is None else data
        self.lives: dict[bytes, int] = {}
        self.now_ms = now_ms
        # Only these may be touched, as in a cluster, where a script declares what it needs.
        self.declared: frozenset[bytes] = frozenset()
        self._commands: dict[bytes, Callable[..., Reply]] = {
            b"GET": self._get,
            b"SET": self._set,
            b"GETRANGE": self._getrange,
            b"UNLINK": self._unlink,
            b"TIME": self._time,
            b"XADD": self._xadd,
            b"ZADD": self._zadd,
            b"ZREM": self._zrem,
            b"ZSCORE": self._zscore,
            b"ZREVRANGE": self._zrevrange,
            b"ZRANGEBYSCORE": self._zrangebyscore,
            b"ZREVRANGEBYSCORE": self._zrevrangebyscore,
            b"ZREMRANGEBYSCORE": self._zremrangebyscore,
        }

    def call(self, name: bytes, *arguments: bytes | float) -> Reply:
        """`redis.call`: numbers arrive as their text, and what is not there is False."""
        command = self._commands.get(name)
        if command is None:
            raise Refused(f"{name.decode()} is not ported")
        return command(*(argument if isinstance(argument, bytes) else b"%.17g" % argument for argument in arguments))

    def _checked(self, key: bytes) -> bytes:
        if key not in self.declared:
            raise Refused(f"{key.decode()} is not one of the script's KEYS")
        return key

    # Strings

    def _get(self, key: bytes) -> bytes | bool:
        found = self.data.get(self._checked(key))
        if found is None:
            return False
        if not isinstance(found, bytes):
            raise WrongType("WRONGTYPE")
        return found

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bytes:
        self.data[self._checked(key)] = value
        self.lives.pop(key, None)
        if options:
            unit, life = options
            if unit != b"PX" or int(life) <= 0:
                raise Refused("ERR syntax error")
            self.lives[key] = int(life)
        return b"OK"

    def _getrange(self, key: bytes, first: bytes, last: bytes) -> bytes:
        if int(first) < 0 or int(last) < 0:
            raise Refused("ranges from the end are not ported")
        found = self._get(key)
        return found[int(first) : int(last) + 1] if isinstance(found, bytes) else b""

    def _unlink(self, *keys: bytes) -> int:
        gone = [key for key in keys if self.data.pop(self._checked(key), None) is not None]
        for key in gone:
            self.lives.pop(key, None)
        return len(gone)

    def _time(self) -> list[bytes]:
        return [b"%d" % (self.now_ms // 1000), b"%d" % (self.now_ms % 1000 * 1000)]

    def _xadd(self, key: bytes, *words: bytes) -> bytes:
        maxlen, about, _length, star, *fields = words
        if (maxlen, about, star) != (b"MAXLEN", b"~", b"*") or len(fields) % 2:
            raise Refused("ERR syntax error")
        entries = self.data.setdefault(self._checked(key), [])
        if not isinstance(entries, list):
            raise WrongType("WRONGTYPE")
        # "About" lets a server keep more than the length, so nothing is cut here.
        entries.append(tuple(fields))
        return b"%d-%d" % (self.now_ms, len(entries))

    # Sorted sets

    def _zset(self, key: bytes) -> Zset:
        found = self.data.get(self._checked(key), {})
        if not isinstance(found, dict):
            raise WrongType("WRONGTYPE")
        return found

    def _ordered(self, key: bytes) -> list[tuple[float, bytes]]:
        return sorted((score, member) for member, score in self._zset(key).items())

    def _between(self, key: bytes, least: bytes, most: bytes) -> list[tuple[float, bytes]]:
        return [found for found in self._ordered(key) if _above(found[0], least) and _below(found[0], most)]

    def _zadd(self, key: bytes, *pairs: bytes) -> int:
        if not pairs or len(pairs) % 2:
            raise Refused("ERR wrong number of arguments")
        zset = self._zset(key)
        before = len(zset)
        zset.update({member: float(score) for score, member in zip(pairs[::2], pairs[1::2], strict=True)})
        self.data[key] = zset
        return len(zset) - before

    def _zrem(self, key: bytes, *members: bytes) -> int:
        zset = self._zset(key)
        gone = [member for member in members if zset.pop(member, None) is not None]
        if not zset:
            self.data.pop(key, None)
        return len(gone)

    def _zscore(self, key: bytes, member: bytes) -> bytes | bool:
        score = self._zset(key).get(member)
        return False if score is None else _shown(score)

    def _zrevrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        if int(first) < 0 or int(last) < 0:
            raise Refused("ranges from the end are not ported")
        return _listed(self._ordered(key)[::-1][int(first) : int(last) + 1], options)

    def _zrangebyscore(self, key: bytes, least: bytes, most: bytes, *options: bytes) -> list[bytes]:
        return _listed(self._between(key, least, most), options)

    def _zrevrangebyscore(self, key: bytes, most: bytes, least: bytes, *options: bytes) -> list[bytes]:
        return _listed(self._between(key, least, most)[::-1], options)

    def _zremrangebyscore(self, key: bytes, least: bytes, most: bytes) -> int:
        members = [member for _, member in self._between(key, least, most)]
        return self._zrem(key, *members) if members else 0


def _above(score: float, bound: bytes) -> bool:
    return score > float(bound[1:]) if bound.startswith(b"(") else score >= float(bound)


def _below(score: float, bound: bytes) -> bool:
    return score < float(bound[1:]) if bound.startswith(b"(") else score <= float(bound)


def _listed(found: Sequence[tuple[float, bytes]], options: tuple[bytes, ...]) -> list[bytes]:
    with_scores = options[:1] == (b"WITHSCORES",)
    limit = options[1:] if with_scores else options
    if limit:
        word, skipped, count = limit
        if word != b"LIMIT":
            raise Refused("ERR syntax error")
        found = found[int(skipped) : int(skipped) + int(count)]
    return [word for score, member in found for word in ((member, _shown(score)) if with_scores else (member,))]


def _shown(score: float) -> bytes:
    if math.isinf(score):
        return b"inf" if score > 0 else b"-inf"
    return b"%.17g" % score


class Lua:
    """Lua 5.1 with the sandbox of a Redis script. One script runs at a time."""

    def __init__(self) -> None:
        self._runtime = lua51.LuaRuntime(encoding=None, register_eval=False)
        self._runtime.execute(_SANDBOX)
        self._redis = MemoryRedis()
        self._called = self._runtime.table_from({b"call": self._call, b"pcall": self._pcall})
        self._compiled: dict[str, Callable[..., bytes]] = {}

    def run(self, text: str, redis: MemoryRedis, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
        """EVAL: the script's reply, with `redis` changed as it says."""
        function = self._compiled.get(text)
        if function is None:
            # KEYS, ARGV and redis are globals in Redis and parameters here; no script can tell.
            function = self._runtime.eval(b"function(KEYS, ARGV, redis) " + text.encode() + b"\nend")
            self._compiled[text] = function
        self._redis = redis
        redis.declared = frozenset(keys)
        return bytes(function(self._runtime.table(*keys), self._runtime.table(*arguments), self._called))

    def _call(self, name: bytes, *arguments: bytes | float) -> object:
        reply = self._redis.call(name, *arguments)
        return self._runtime.table(*reply) if isinstance(reply, list) else reply

    def _pcall(self, name: bytes, *arguments: bytes | float) -> object:
        """`redis.pcall`: an error of the data is a table with its text; a command that is not ported stays an error."""
        try:
            return self._call(name, *arguments)
        except WrongType as error:
            return self._runtime.table_from({b"err": str(error).encode()})
