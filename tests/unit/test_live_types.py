"""The token of a place in the topic, and what the streams over a type of case are told, without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway.live_token import Malformed, OtherTopic, Spot, mark, read, written
from gateway.live_types import TypeStreams
from gateway.telemetry import EdgeMetrics
from streams.events import CaseEvent, encode
from streams.testing import case_event

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOPIC, TYPE = "cases.changes.v1", "public-toilet-problem"
SPOTS = st.lists(st.builds(Spot, st.integers(0, 2**62), st.integers(0, 2**16 - 1)), max_size=30).map(
    lambda spots: dict(enumerate(spots))
)


@dataclass(slots=True)
class Found:
    """A record as the client gives it."""

    offset: int
    partition: int = 0
    event: CaseEvent = field(default_factory=case_event)
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()

    def __post_init__(self) -> None:
        self.key, self.value, self.headers = encode(self.event)


def streams(**bounds: Any) -> TypeStreams:
    """Streams whose tail stands at offset 10 of the one partition."""
    made = TypeStreams(TOPIC, EdgeMetrics(CollectorRegistry(), "0"), **bounds)
    assert made.place(0, 0, 10) == 9
    return made


def told(text: bytes) -> list[str]:
    """The events of the messages."""
    return [line.removeprefix("event: ") for line in text.decode().splitlines() if line.startswith("event: ")]


def nothing() -> None:
    raise AssertionError("nobody is slow here")


@UNHURRIED
@given(SPOTS)
def test_a_token_leads_back_to_its_place(spots: dict[int, Spot]) -> None:
    """Whatever the offsets, in letters that a header and an event's id may hold."""
    text = written(TOPIC, spots)
    assert text.replace("-", "").replace("_", "").isalnum()
    if spots:
        assert read(text, TOPIC) == spots
        with pytest.raises(OtherTopic):
            read(text, "other." + TOPIC)


@UNHURRIED
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.hex()))
def test_anything_else_is_refused(text: str) -> None:
    """What was not made here is malformed, of another topic, or names places; never another error."""
    try:
        read(text, TOPIC)
    except (Malformed, OtherTopic):
        return
    assert text


def test_the_largest_topic_has_a_token_that_fits_a_header() -> None:
    """A thousand partitions with 250 million records each; aiohttp takes a header of 8,190 bytes."""
    assert len(written(TOPIC, dict.fromkeys(range(1000), Spot(250_000_000, 40_000)))) <= 8100


def test_events_of_the_type_are_told_with_the_place_after_them() -> None:
    """Another type's and unreadable records move the place, and are not told."""
    live = streams()
    with live.subscribe(TYPE, nothing) as mine, live.subscribe("pothole", nothing) as other:
        live.take(Found(10))
        live.take(Found(11, event=case_event(2, case_type="pothole")))
        broken = Found(12)
        broken.value = b"{"
        live.take(broken)
        live.take(Found(13, event=case_event(3)))
        text = mine.take()
        assert told(text) == ["case.created", "case.updated"]
        assert told(other.take()) == ["case.updated"]
        ids = [line.removeprefix("id: ") for line in text.decode().splitlines() if line.startswith("id: ")]
        assert [read(one, TOPIC)[0].offset for one in ids] == [11, 14]
        assert ids[-1] == live.token


def test_a_tail_that_comes_back_goes_on() -> None:
    """The record before the place is read again and known; nothing is told twice and nobody is reset."""
    live, last = streams(), Found(10)
    with live.subscribe(TYPE, nothing) as stream:
        live.take(last)
        assert live.place(0, 0, 12) == 10
        live.take(last)
        live.take(Found(11))
        assert told(stream.take()) == ["case.created", "case.created"]


@pytest.mark.parametrize(
    ("beginning", "end", "offset", "reason"),
    [(0, 3, None, b"recreated"), (20, 30, None, b"expired"), (0, 30, 10, b"recreated"), (0, 30, 15, b"expired")],
)
def test_a_place_that_is_gone_is_a_reset(beginning: int, end: int, offset: int | None, reason: bytes) -> None:
    """A topic that is shorter, or has another record there, was made anew; a later beginning or a hole lost records."""
    live = streams()
    with live.subscribe(TYPE, nothing) as stream:
        live.take(Found(10))
        stream.take()
        live.place(0, beginning, end)
        if offset is not None:
            live.take(Found(offset))
        text = stream.take()
        assert told(text)[0] == "reset"
        assert b'{"reason":"%s"}' % reason in text
        assert text.rstrip().split(b"id: ")[-1].split(b"\n")[0].decode() == live.token


@pytest.mark.parametrize("bounds", [{"most_events": 3}, {"most_bytes": 1500}])
def test_a_slow_reader_is_cut_at_its_bound_and_the_others_are_not(bounds: dict[str, int]) -> None:
    """In events and in bytes."""
    live, cut = streams(**bounds), list[str]()
    with live.subscribe(TYPE, lambda: cut.append("slow")) as slow, live.subscribe(TYPE, nothing) as quick:
        for offset in range(10, 20):
            live.take(Found(offset))
            quick.take()
        assert slow.cut
        assert not quick.cut
        assert slow.take() == b""
    assert cut == ["slow"]


async def test_streams_end_when_the_process_drains() -> None:
    """Those that are open, and those that come afterwards."""
    live = streams()
    with live.subscribe(TYPE, nothing) as early:
        live.close()
        assert early.closed
        assert await early.wait(1)
    with live.subscribe(TYPE, nothing) as late:
        assert late.closed


async def test_a_tail_that_is_behind_another_is_waited_for() -> None:
    """Until it is there, or the time is over."""
    live = streams()
    assert not await live.reached({0: Spot(11, 0)}, 0.01)
    live.take(Found(10))
    assert await live.reached({0: Spot(11, 0)}, 1)


def test_marks_differ_between_records() -> None:
    """And none is 0, which stands for a record that was not read."""
    marks = {mark(*encode(case_event(version))[:2]) for version in range(1, 50)}
    assert len(marks) > 45
    assert 0 not in marks
    assert mark(None, None)
