"""aiocache on a silo's cache: `@cached(cache=SiloCache, silo=…)` keeps what a function made of recorded reads, and ends
it with the first change of a row that it depends on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import orjson
from aiocache.base import BaseCache
from aiocache.serializers import BaseSerializer
from redis.asyncio import Redis

from cache import recorded
from cache.definition import LONGEST_LIFE_S
from cache.entry import Broken, Codec, Entry
from cache.link import RedisLink, RedisSkipped
from cache.metrics import CacheMetrics
from cache.seal import KeyRing
from cache.state import Position, State
from cache.store import Fill, Store

_log = logging.getLogger(__name__)
T = TypeVar("T")
_READ_TIMEOUT_S = 0.5
_CLEAR_TIMEOUT_S = 30.0
_KEYS_A_SCAN = 500
_READS = 3
_KEYS_KNOWN = 10_000
_STRICT = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS


class Unsupported(Exception):
    """An operation of aiocache that no answer of a silo could survive; the message says why."""


@dataclass(frozen=True, slots=True)
class SiloBacking:
    """What a SiloCache works with: the parts of one silo in this process. `store.run` must be running."""

    store: Store
    link: RedisLink
    ring: KeyRing
    metrics: CacheMetrics


class OrjsonSerializer(BaseSerializer):  # type: ignore[misc] # aiocache brings no types
    """JSON that gives back what it was given: a value that would come back as another is not kept at all.

    So dates, tuples, decimals and rows of asyncpg have to be turned into JSON by the function. Nothing is raised for
    them: the decorator would write the value into the log.
    """

    DEFAULT_ENCODING = None

    def dumps(self, value: object) -> bytes | None:
        try:
            written = orjson.dumps(value, option=_STRICT)
        except orjson.JSONEncodeError:
            return None
        return written if orjson.loads(written) == value else None

    def loads(self, value: bytes | None) -> Any:
        return None if value is None else orjson.loads(value)


@dataclass(frozen=True, slots=True)
class _Hit:
    entry: Entry
    state: State
    tags: tuple[str, ...]
    payload: bytes


class SiloCache(BaseCache):  # type: ignore[misc] # aiocache brings no types
    """A cache of aiocache in which nothing is older than its silo.

        async with RecordedSilo(tagger, urls) as town:
            @cached(ttl=600, cache=SiloCache, silo=backing, namespace="wards")
            async def ward(postcode: str) -> list[dict]:
                tags = [tagger.value_tag("address", "postcode", [postcode])]
                return [dict(row) for row in await town.fetch(SQL, postcode, touched={"address": tags})]

    An answer is stored only when the function, or tasks that it started and waited for, read the silo by
    `RecordedSilo.fetch` after this cache had missed, and stored as of the oldest of these reads. All that it uses of
    the silo must be read so, and nothing else may change its answer. A call with `cache_read=False` stores nothing.

    Reading is validated although the tags of a key are not known beforehand. The entry carries its own, authenticated
    with it. It is read with the tags last seen under the key; when it carries others, it is read again with those. What
    is served is always *one* round trip that read the state, then this entry, then exactly its tags, in this order: the
    same as for a lookup. What the round trip before it found is used for nothing but to know what to ask.

    `personal` seals the values. Keys and namespaces are HMACs in Redis and in aiocache's log. What Redis fails to do is
    a miss. Setting is offered and not waited for; a value may still arrive after a `delete` that followed it.
    """

    NAME = "silo"

    def __init__(
        self,
        *,
        silo: SiloBacking,
        personal: bool = False,
        serializer: BaseSerializer | None = None,
        plugins: Sequence[Any] | None = None,
        namespace: str | None = None,
        key_builder: Callable[[Any, str], Any] | None = None,
        ttl: float | None = None,
    ) -> None:
        # No time-out of aiocache's: it would run each call in a task of its own, which opens no recording for the
        # caller. Redis has its own deadlines here.
        super().__init__(
            serializer=serializer or OrjsonSerializer(), plugins=plugins, namespace=namespace, timeout=0, ttl=ttl
        )
        self._silo = silo
        self._key_builder = key_builder
        self._codec = Codec("aiocache", silo.ring, personal=personal)
        self._tags_of: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._locks: dict[str, tuple[str, float]] = {}

    def _build_key(self, key: Any, namespace: str | None = None) -> str:
        """Stands for namespace and key. Every key that reaches the methods below has been through here."""
        space = (namespace if namespace is not None else self.namespace) or ""
        plain = key.value if isinstance(key, Enum) else key
        built = plain if self._key_builder is None else self._key_builder(plain, space)
        digest = self._silo.ring.hmac(b"aiocache key", space.encode(), str(built).encode())
        return f"aio:{self._space(space)}:{digest.hex()}"

    def _space(self, namespace: str) -> str:
        return self._silo.ring.hmac(b"aiocache namespace", namespace.encode()).hex()

    # Reading

    async def _get(self, key: str, encoding: str | None, _conn: object = None) -> bytes | str | None:
        return (await self._multi_get([key], encoding))[0]

    async def _multi_get(
        self, keys: Sequence[str], encoding: str | None, _conn: object = None
    ) -> list[bytes | str | None]:
        broken: set[str] = set()
        if len(keys) == 1:
            hits = [await self._read(keys[0], broken)]
        else:
            # Tasks of their own, so that Redis is asked for all in one go; what they would open would not be open here.
            hits = await asyncio.gather(*(self._read(key, broken) for key in keys))
        for hit in hits:
            if hit is not None:
                # As of the state it was validated at: no change up to there has touched it.
                recorded.note(self._silo.store.silo, hit.state.position, hit.entry.committed_ms, hit.tags)
        missed = [key for key, hit in zip(keys, hits, strict=True) if hit is None]
        recorded.forget(self, keys)
        if missed:
            recorded.begin(self, missed, replace=bool(broken))
        payloads = [None if hit is None else hit.payload for hit in hits]
        return [one.decode(encoding) if one is not None and encoding else one for one in payloads]

    async def _exists(self, key: str, _conn: object = None) -> bool:
        return await self._read(key, set()) is not None

    async def _read(self, key: str, broken: set[str]) -> _Hit | None:
        tags = self._tags_of.get(key, ())
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                for _ in range(_READS):
                    hit = await self._read_with(key, tags, broken)
                    if hit is None or hit.tags == tags:
                        return hit
                    tags = hit.tags
        except TimeoutError:
            pass
        return None

    async def _read_with(self, key: str, tags: tuple[str, ...], broken: set[str]) -> _Hit | None:
        """The entry, validated against `tags`; whoever asked looks whether those are the ones that it carries."""
        store = self._silo.store
        reading = await store.read(key, tags)
        now_ms = store.now_ms()
        if reading is None or reading.state is None or reading.raw is None or now_ms is None:
            return None
        if reading.state.position.definition != store.definition:
            return None
        try:
            entry = self._codec.unpack(reading.raw, reading.key)
        except Broken as found:
            self._silo.metrics.broken.labels("aiocache", found.reason).inc()
            broken.add(key)
            return None
        head, _, payload = entry.body.partition(b"\n")
        carried = tuple(head.decode().split(" "))
        if (carried == tags and entry.seq < reading.newest) or now_ms >= entry.fresh_ms:
            return None
        self._remember(key, carried)
        return _Hit(entry, reading.state, carried, payload)

    def _remember(self, key: str, tags: tuple[str, ...]) -> None:
        self._tags_of[key] = tags
        self._tags_of.move_to_end(key)
        if len(self._tags_of) > _KEYS_KNOWN:
            self._tags_of.popitem(last=False)

    # Storing

    async def _set(
        self, key: str, value: Any, ttl: float | None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        """Whether it was offered to Redis, which decides."""
        if _cas_token is not None:
            raise Unsupported("an answer of a silo is not set against another: its position decides which one stays")
        recording = recorded.take(self, key)
        position = self._storable(recording)
        now_ms = self._silo.store.now_ms()
        if position is None or recording is None or now_ms is None:
            self._silo.metrics.fills.labels(self._silo.store.silo, "unrecorded").inc()
            return False
        if value is None or value == b"null":
            # None is how aiocache says that there is nothing.
            _log.warning("answer_not_kept", extra={"reason": "none" if value is not None else "not_json"})
            return False
        payload = value if isinstance(value, bytes) else str(value).encode(self.serializer.encoding or "utf-8")
        tags = tuple(sorted(recording.tags))
        life_ms = int(min(LONGEST_LIFE_S if ttl is None else ttl, LONGEST_LIFE_S) * 1000)
        ends_ms = int(now_ms) + life_ms
        body = " ".join(tags).encode() + b"\n" + payload
        entry = Entry(position.seq, recording.applied_ms, ends_ms, ends_ms, 0, negative=False, body=body)
        entry_key = self._silo.store.entry_key(position.epoch, key)
        packed = self._codec.pack(entry, entry_key)
        # urgent: who waits for aiocache's lock looks for it as soon as this caller lets go of that
        fill = Fill(position, entry_key, packed, tags, life_ms, replace=recording.replace)
        self._silo.store.offer(fill, is_urgent=True)
        return True

    def _storable(self, recording: recorded.Recording | None) -> Position | None:
        """The position to store at; None when nothing was recorded, or what was cannot be guarded here."""
        if recording is None or recording.spoilt or recording.silo != self._silo.store.silo or not recording.tags:
            return None
        position = recording.position
        # Tags made in another way than the applier's would guard nothing.
        return position if position is not None and position.definition == self._silo.store.definition else None

    async def _multi_set(self, pairs: Sequence[tuple[str, Any]], ttl: float | None, _conn: object = None) -> bool:
        """Offers those that were missed together; `multi_cached` sets those again that it had found."""
        for key, value in pairs:
            await self._set(key, value, ttl)
        return True

    # Removing

    async def _delete(self, key: str, _conn: object = None) -> int:
        self._tags_of.pop(key, None)
        epoch = await self._epoch()
        if epoch is None:
            return 0
        entry_key = self._silo.store.entry_key(epoch, key)
        return await self._redis(lambda redis: redis.unlink(entry_key), 0)

    async def _expire(self, key: str, ttl: float, _conn: object = None) -> bool:
        """Ends an entry earlier; never later than it was stored for, as its tags are kept only for so long."""
        if not ttl:
            raise Unsupported("an answer of a silo cannot be kept for ever: the tags that guard it are not")
        epoch = await self._epoch()
        if epoch is None:
            return False
        entry_key, most_ms = self._silo.store.entry_key(epoch, key), int(ttl * 1000)

        async def shorten(redis: Redis) -> bool:
            left_ms = await redis.pttl(entry_key)
            return left_ms > 0 and bool(await redis.pexpire(entry_key, min(left_ms, most_ms)))

        return await self._redis(shorten, otherwise=False)

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        """Drops the entries of one namespace, its own unless another is named; False if Redis did not last."""
        space = self._space((namespace if namespace is not None else self.namespace) or "")
        pattern = self._silo.store.entry_key("*", f"aio:{space}:*").decode()
        cursor = 0

        async def step(redis: Redis) -> int:
            following, keys = await redis.scan(cursor, match=pattern, count=_KEYS_A_SCAN)
            if keys:
                await redis.unlink(*keys)
            return int(following)

        try:
            async with asyncio.timeout(_CLEAR_TIMEOUT_S):
                while True:
                    cursor = await self._redis(step, -1)
                    if cursor <= 0:
                        return cursor == 0
        except TimeoutError:
            return False

    async def _epoch(self) -> str | None:
        try:
            raw, _ = await self._silo.store.look()
        except RedisSkipped:
            return None
        state = State.parse(raw)
        return None if state is None else state.epoch

    async def _redis(self, work: Callable[[Redis], Awaitable[T]], otherwise: T) -> T:
        try:
            return await self._silo.link.call(work)
        except RedisSkipped:
            return otherwise

    # The lock of `cached_stampede`

    async def _add(self, key: str, value: str, ttl: float | None, _conn: object = None) -> bool:
        """Only for aiocache's RedLock, whose waiters hear of nothing outside their process: it is kept in here.

        Raises ValueError while another holds it.
        """
        now = time.monotonic()
        holder = self._locks.get(key)
        if holder is not None and now < holder[1]:
            raise ValueError("held")
        self._locks[key] = (value, now + ttl if ttl else float("inf"))
        return True

    async def _redlock_release(self, key: str, value: str) -> bool:
        if self._locks.get(key, ("", 0.0))[0] != value:
            return False
        del self._locks[key]
        return True

    # What would break the protocol

    async def add(self, *_: object, **__: object) -> bool:
        raise Unsupported("whether an answer of a silo is stored, its position decides: use set")

    async def _gets(self, *_: object, **__: object) -> bytes:
        raise Unsupported("an answer of a silo is not set against another: its position decides which one stays")

    async def _increment(self, *_: object, **__: object) -> int:
        raise Unsupported("a counter is no answer of a silo: it has no position and no tags")

    async def _raw(self, *_: object, **__: object) -> None:
        raise Unsupported("a command of one's own could write what no tag guards")
