"""Streams over all cases of a type: fed by the same tail of the topic as the streams over one case.

An event's text, its token within, is made once for all streams that get it. The tail knows where it stands in each
partition, and goes on there after an outage, so a stream that stays open misses nothing; what cannot be gone on from, a
topic made anew or records that were deleted before they were read, is told to each stream as a `reset`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, Protocol

import orjson

from gateway.live_token import Spot, Spots, mark, written
from gateway.telemetry import EdgeMetrics
from streams.errors import Undecodable
from streams.events import CaseEvent, decode

Reason = Literal["expired", "recreated", "other_topic"]
_CASE_TYPE = "ce_casetype"
_MOST_EVENTS = 1000
_MOST_BYTES = 1024 * 1024


class Record(Protocol):
    """A record of the topic, as the Kafka client gives it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class TypeSubscription:
    """What one stream is still to be sent, bounded in messages and in bytes; `cut` when its reader is too slow."""

    def __init__(self, on_cut: Callable[[], None], *, most_events: int, most_bytes: int) -> None:
        self.cut = False
        self.closed = False
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._on_cut = on_cut
        self._texts: deque[bytes] = deque()
        self._bytes = 0
        self._news = asyncio.Event()

    def offer(self, text: bytes) -> bool:
        """Queues a message; false, and cut, when there is no room."""
        if self.cut or self.closed:
            return True
        if len(self._texts) >= self._most_events or self._bytes + len(text) > self._most_bytes:
            self.cut = True
            self._texts.clear()
            self._news.set()
            self._on_cut()
            return False
        self._texts.append(text)
        self._bytes += len(text)
        self._news.set()
        return True

    def close(self) -> None:
        """Ends the stream after what is queued."""
        self.closed = True
        self._news.set()

    async def wait(self, timeout_s: float) -> bool:
        """True when there is something to send or the stream ends, false when the time passed without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
                return True
        return False

    def take(self) -> bytes:
        """Everything that is queued."""
        made = b"".join(self._texts)
        self._texts.clear()
        self._bytes = 0
        if not (self.cut or self.closed):
            self._news.clear()
        return made


class TypeStreams:
    """The streams of this process, and how far the tail has read. Nothing here waits: all of it is one step."""

    def __init__(
        self, topic: str, metrics: EdgeMetrics, *, most_events: int = _MOST_EVENTS, most_bytes: int = _MOST_BYTES
    ) -> None:
        self.topic = topic
        self._metrics = metrics
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._spots: dict[int, Spot] = {}
        self._streams: dict[bytes, set[TypeSubscription]] = defaultdict(set)
        self._moved = asyncio.Event()
        self._closed = False

    @property
    def spots(self) -> Spots:
        """Where the tail stands; empty before it stood anywhere."""
        return self._spots

    @property
    def token(self) -> str:
        """Where the tail stands, as the id of an event."""
        return written(self.topic, self._spots)

    @contextmanager
    def subscribe(self, case_type: str, on_cut: Callable[[], None]) -> Iterator[TypeSubscription]:
        """A subscription from where the tail stands now, for as long as the block runs."""
        subscription = TypeSubscription(on_cut, most_events=self._most_events, most_bytes=self._most_bytes)
        if self._closed:
            subscription.close()
        name = case_type.encode()
        self._streams[name].add(subscription)
        self._metrics.live_type_streams.inc()
        try:
            yield subscription
        finally:
            self._metrics.live_type_streams.dec()
            self._streams[name].discard(subscription)
            if not self._streams[name]:
                del self._streams[name]

    def close(self) -> None:
        """Ends every stream, and each that is opened from now on."""
        self._closed = True
        for subscription in self._each():
            subscription.close()

    def place(self, partition: int, beginning: int, end: int) -> int:
        """Where to begin reading a partition that holds the offsets from `beginning` to before `end`.

        It is the end at first, and later where the tail was; one record early, for its mark.
        """
        known = self._spots.get(partition)
        if known is None or not beginning <= known.offset <= end:
            self._spots[partition] = Spot(end, 0)
            if known is not None:
                self._reset("expired" if known.offset < beginning else "recreated")
        return max(beginning, self._spots[partition].offset - 1)

    def take(self, record: Record) -> None:
        """Notes how far the tail is, and hands the record's event to the streams of its type."""
        known = self._spots.get(record.partition)
        marked = mark(record.key, record.value)
        if known is not None and record.offset == known.offset - 1 and known.mark in (0, marked):
            self._spots[record.partition] = Spot(known.offset, marked)
            return
        self._spots[record.partition] = Spot(record.offset + 1, marked)
        self._moved.set()
        if known is not None and record.offset != known.offset:
            self._reset("expired" if record.offset > known.offset else "recreated")
        streams = self._streams.get(type_of(record.headers))
        if not streams:
            return
        text = self.told(record, self.token)
        for subscription in tuple(streams) if text is not None else ():
            if subscription.offer(text or b""):
                self._metrics.live_events.inc()
            else:
                self._metrics.live_cut.labels("slow").inc()

    def told(self, record: Record, token: str) -> bytes | None:
        """The message about a record; None for one that cannot be read."""
        try:
            event = decode(record.key, record.value, record.headers)
        except Undecodable:
            self._metrics.live_undecodable.inc()
            return None
        return _as_text(event, token)

    async def reached(self, spots: Spots, timeout_s: float) -> bool:
        """Whether the tail comes as far as `spots` in time. Another process's tail may be a moment ahead of ours."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(self._spots.get(one, Spot(0, 0)).offset < spot.offset for one, spot in spots.items()):
                    self._moved.clear()
                    await self._moved.wait()
                return True
        return False

    def reset_text(self, reason: Reason) -> bytes:
        """The message that tells a stream to begin anew: what lies before it, it may have missed."""
        self._metrics.live_resets.inc()
        return b'id: %s\nevent: reset\ndata: {"reason":"%s"}\n\n' % (self.token.encode(), reason.encode())

    def _reset(self, reason: Reason) -> None:
        for subscription in self._each():
            subscription.offer(self.reset_text(reason))

    def _each(self) -> list[TypeSubscription]:
        return [one for streams in self._streams.values() for one in streams]


def type_of(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """The case type that a record's headers name, or nothing."""
    return next((text for name, text in headers if name == _CASE_TYPE), b"")


def _as_text(event: CaseEvent, token: str) -> bytes:
    """One message: which case, and what changed, but no value of the document other than its status."""
    data = {
        "case_id": str(event.case_id),
        "reference": event.reference,
        "version": event.version,
        "type": event.type,
        "at": event.at,
        "status": event.status,
        "changed": event.changed,
    }
    shown = orjson.dumps(data, option=orjson.OPT_UTC_Z)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (token.encode(), event.type.encode(), shown)
