"""The stream over all cases of a type on real Kafka: what was missed, then what happens, whatever comes between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from gateway.context import EdgeOptions
from gateway.dev.addresses import Database, Servers
from gateway.dev.sse import Message, messages
from gateway.dev.stack import Stack
from gateway.live_replay import Replay
from streams.events import CaseEvent, encode
from streams.outbox import producer
from streams.testing import case_event
from streams.topics import ensure_topics
from tests.integration.edge import TYPE, Edge, problem_of, running_edge

RARELY, OFTEN = EdgeOptions(heartbeat_s=60), EdgeOptions(heartbeat_s=0.2)
PATH = f"/v1/events?type={TYPE}"


@asynccontextmanager
async def _town(
    database: Database, servers: Servers, folder: Path, prefix: str, options: EdgeOptions = RARELY
) -> AsyncIterator[Edge]:
    """An edge whose tail is in place, with a key that may watch."""
    topic = f"{prefix}cases.changes.v1"
    await ensure_topics(servers.kafka_bootstrap, [topic], 3, 1)
    async with running_edge(
        database.url, folder, kafka=servers.kafka_bootstrap, topic=topic, live=True, options=options
    ) as edge:
        edge.tokens["watcher"] = await edge.context.keys.add("watcher", ["events:all"])
        await _until(lambda: edge.metric("silogate_live_tail_up") == 1)
        yield edge


async def _publish(edge: Edge, servers: Servers, events: Sequence[CaseEvent]) -> None:
    """Puts events into the topic, each case's in its order."""
    async with producer(servers.kafka_bootstrap, "test", request_timeout_ms=60_000) as kafka:
        for event in events:
            key, value, headers = encode(event)
            await kafka.send_and_wait(edge.context.live.types.topic, value, key=key, headers=headers)


@asynccontextmanager
async def _stream(edge: Edge, last: str | None = None) -> AsyncIterator[ClientResponse]:
    headers = {} if last is None else {"Last-Event-ID": last}
    answer = await edge.ask("GET", PATH, key="watcher", headers=headers, timeout=ClientTimeout(total=60))
    try:
        assert answer.status == 200, await answer.text()
        yield answer
    finally:
        answer.close()


async def _read(answer: ClientResponse, count: int) -> list[Message]:
    """The next events, comments left out."""
    events: list[Message] = []
    async with asyncio.timeout(30):
        async for message in messages(answer):
            if message.event != "comment" and message.data:
                events.append(message)
                if len(events) == count:
                    break
    return events


async def _place(answer: ClientResponse) -> str:
    """The token with which the stream begins."""
    async with asyncio.timeout(20):
        assert (await answer.content.readuntil(b"\n\n")).startswith(b"retry: ")
        text = await answer.content.readuntil(b"\n\n")
    return text.decode().strip().removeprefix("id: ")


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def _made(cases: int, versions: int) -> list[CaseEvent]:
    """Versions of several cases, turn by turn."""
    ids = [uuid4() for _ in range(cases)]
    return [case_event(version, case_id=one) for version in range(1, versions + 1) for one in ids]


def _told(events: list[Message]) -> list[tuple[UUID, int]]:
    shown = [orjson.loads(event.data) for event in events]
    return [(UUID(one["case_id"]), one["version"]) for one in shown]


def _by_case(told: Sequence[tuple[UUID, int]]) -> dict[UUID, list[int]]:
    made: dict[UUID, list[int]] = {}
    for case_id, version in told:
        made.setdefault(case_id, []).append(version)
    return made


async def test_it_tells_what_happens_to_every_case_of_the_type(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """Another type's cases are left out, and nothing personal is in it."""
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge, _stream(edge) as answer:
        mine = _made(3, 2)
        await _publish(edge, servers, [*mine[:3], case_event(case_type="pothole"), *mine[3:]])
        events = await _read(answer, 6)
        assert _by_case(_told(events)) == {event.case_id: [1, 2] for event in mine[:3]}
        data = orjson.loads(events[0].data)
        assert data.keys() == {"case_id", "reference", "version", "type", "at", "status", "changed"}
        assert events[0].event == "case.created"
        assert answer.headers["Cache-Control"] == "no-store"
        rows = await edge.audit_rows()
        assert [(row["action"], row["subject"]) for row in rows] == [("case.watch_type", TYPE)]


async def test_readers_that_come_and_go_miss_nothing(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """Six readers that leave after every few events and come back with a token, while cases change: each event once."""
    events = _made(8, 12)
    async with _town(gateway_database, servers, tmp_path, topic_prefix, OFTEN) as edge:
        async with _stream(edge) as first:
            start = await _place(first)

        async def follow(step: int) -> list[tuple[UUID, int]]:
            seen: list[tuple[UUID, int]] = []
            last = start
            while len(seen) < len(events):
                async with _stream(edge, last) as answer:
                    got = await _read(answer, min(step, len(events) - len(seen)))
                seen += _told(got)
                last = got[-1].id
            return seen

        readers = asyncio.gather(*(follow(step) for step in (7, 13, 20, 29, 41, 96)))
        seen, _ = await asyncio.gather(readers, _publish(edge, servers, events))
        for told in seen:
            assert _by_case(told) == {event.case_id: list(range(1, 13)) for event in events[:8]}
        await _until(lambda: edge.metric("silogate_live_type_streams") == 0)
        assert edge.context.live.replays._free == 8


async def test_what_comes_while_the_past_is_read_comes_once(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of the past sees it too, and leaves it to the tail."""
    events, read = _made(2, 4), Replay._fetch
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge:

        async def late(replay: Replay, left: set[TopicPartition]) -> dict[TopicPartition, list[Any]]:
            if not late_ones:
                late_ones.extend(events[4:])
                await _publish(edge, servers, late_ones)
                await _until(lambda: sum(spot.offset for spot in edge.context.live.types.spots.values()) == 8)
            return await read(replay, left)

        late_ones: list[CaseEvent] = []
        monkeypatch.setattr(Replay, "_fetch", late)
        await _publish(edge, servers, events[:4])
        await _until(lambda: sum(spot.offset for spot in edge.context.live.types.spots.values()) == 4)
        async with _stream(edge, "0") as answer:
            told = _told(await _read(answer, 8))
            await _publish(edge, servers, [case_event(case_id=events[0].case_id, version=5)])
            assert _told(await _read(answer, 1)) == [(events[0].case_id, 5)]
        assert _by_case(told) == {event.case_id: [1, 2, 3, 4] for event in events[:2]}


async def test_all_that_is_kept_comes_first_when_asked_for(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """`Last-Event-ID: 0` begins with the oldest record; more than one page of them."""
    events = _made(5, 160)
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge:
        await _publish(edge, servers, events)
        async with _stream(edge, "0") as answer:
            told = _told(await _read(answer, len(events)))
            await _publish(edge, servers, [replace(events[0], event_id=uuid4(), version=161)])
            assert _told(await _read(answer, 1)) == [(events[0].case_id, 161)]
        assert _by_case(told) == {event.case_id: list(range(1, 161)) for event in events[:5]}


async def test_a_quiet_type_keeps_its_place(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """A heartbeat carries the token of now, though nothing of the type has happened; a client goes on from there."""
    async with _town(gateway_database, servers, tmp_path, topic_prefix, OFTEN) as edge:
        async with _stream(edge) as answer:
            start = await _place(answer)
            await _publish(edge, servers, [case_event(case_type="pothole")])
            async with asyncio.timeout(20):
                async for message in messages(answer):
                    if message.event == "comment" and message.id not in ("", start):
                        break
        mine = case_event()
        await _publish(edge, servers, [mine])
        async with _stream(edge, message.id) as answer:
            assert _told(await _read(answer, 1)) == [(mine.case_id, 1)]


async def test_a_topic_made_anew_is_a_reset(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """With more records than before, so that the offsets alone would fit; and a token of another topic."""
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge:
        topic = edge.context.live.types.topic
        event = case_event()
        async with _stream(edge) as answer:
            await _publish(edge, servers, [event])
            (told,) = await _read(answer, 1)
    await _recreated(servers, topic)
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge:
        later = [replace(event, event_id=uuid4(), version=version) for version in range(11, 15)]
        await _publish(edge, servers, later)
        async with _stream(edge, told.id) as answer:
            (reset,) = await _read(answer, 1)
            assert (reset.event, orjson.loads(reset.data)) == ("reset", {"reason": "recreated"})
            await _publish(edge, servers, [replace(event, event_id=uuid4(), version=15)])
            (now,) = await _read(answer, 1)
            assert _told([now]) == [(event.case_id, 15)]
        async with _stream(edge, reset.id) as answer:
            assert _told(await _read(answer, 1)) == [(event.case_id, 15)]
        async with _stream(edge, _of_another_topic()) as answer:
            (reset,) = await _read(answer, 1)
            assert orjson.loads(reset.data) == {"reason": "other_topic"}
        assert edge.metric("silogate_live_resets_total") == 2


async def _recreated(servers: Servers, topic: str) -> None:
    """Deletes the topic and makes it again."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        async with asyncio.timeout(30):
            while True:
                try:
                    made = await ensure_topics(servers.kafka_bootstrap, [topic], 3, 1)
                except KafkaError:
                    made = []
                if made:
                    return
                await asyncio.sleep(0.2)
    finally:
        await admin.close()


def _of_another_topic() -> str:
    from gateway.live_token import Spot, written

    return written("elsewhere", {0: Spot(1, 1), 1: Spot(0, 0), 2: Spot(0, 0)})


async def test_an_open_stream_outlives_a_restart_of_kafka(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str, stack: Stack
) -> None:
    """While the broker is away a new stream is refused, with when to come back; then everything comes, once."""
    events = _made(2, 2)
    async with _town(gateway_database, servers, tmp_path, topic_prefix, OFTEN) as edge, _stream(edge) as answer:
        await _publish(edge, servers, events[:2])
        first = await _read(answer, 2)
        await stack.control("kafka", "stop")
        await _until(lambda: edge.metric("silogate_live_tail_up") == 0)
        refused = await edge.ask("GET", PATH, key="watcher")
        assert await problem_of(refused) == (503, "events_unavailable", None)
        assert refused.headers["Retry-After"] == "2"
        await stack.control("kafka", "start")
        await _publish(edge, servers, events[2:])
        assert _by_case(_told(first + await _read(answer, 2))) == {event.case_id: [1, 2] for event in events[:2]}


async def test_a_stream_ends_with_its_key_and_with_the_process(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """A revoked key's stream is closed at a heartbeat; a process that drains closes the others."""
    async with _town(gateway_database, servers, tmp_path, topic_prefix, OFTEN) as edge:
        async with _stream(edge) as answer:
            await edge.context.keys.revoke(edge.tokens["watcher"].split("_")[1])
            async with asyncio.timeout(20):
                await answer.content.read()
        edge.tokens["watcher"] = await edge.context.keys.add("watcher", ["events:all"])
        async with _stream(edge) as answer:
            edge.context.live.close()
            async with asyncio.timeout(20):
                await answer.content.read()


async def test_what_is_asked_wrongly_is_said(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """The parameter, the token, the scope; and no more streams catch up at once than may."""
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge:
        for path, problem in (
            ("/v1/events", (400, "missing_parameter", "type")),
            (PATH + "&type=x", (400, "repeated_parameter", "type")),
            (PATH + "&case=7", (400, "unknown_parameter", None)),
            ("/v1/events?type=pothole", (422, "unknown_case_type", "type")),
        ):
            assert await problem_of(await edge.ask("GET", path, key="watcher")) == problem
        wrong = await edge.ask("GET", PATH, key="watcher", headers={"Last-Event-ID": "17"})
        assert await problem_of(wrong) == (400, "malformed_last_event_id", "Last-Event-ID")
        # one that may follow a case whose id it knows may not list them all
        assert await problem_of(await edge.ask("GET", PATH, key="form")) == (403, "forbidden", "Authorization")
        edge.context.live.replays._free = 0
        full = await edge.ask("GET", PATH, key="watcher", headers={"Last-Event-ID": "0"})
        assert await problem_of(full) == (503, "overloaded", None)
        async with _stream(edge):
            await _until(lambda: edge.metric("silogate_live_type_streams") == 1)


@pytest.mark.timeout(180)
async def test_five_hundred_streams_in_one_process(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """Four hundred over a case each and a hundred over the type: each is told what is its own, and all of it."""
    events = _made(40, 3)
    async with _town(gateway_database, servers, tmp_path, topic_prefix) as edge, _many() as session:
        url = str(edge.public.make_url("/"))[:-1]
        form, watcher = ({"Authorization": f"Bearer {edge.tokens[name]}"} for name in ("form", "watcher"))
        ids = [(await edge.create())["id"] for _ in range(40)]
        mine = [
            replace(event, case_id=UUID(ids[number % 40]), version=event.version + 1)
            for number, event in enumerate(events)
        ]

        async def open_one(path: str, headers: dict[str, str]) -> ClientResponse:
            answer = await session.get(url + path, headers=headers)
            assert answer.status == 200, await answer.text()
            return answer

        of_cases = await asyncio.gather(
            *(
                open_one(f"/v1/cases/{case_id}/events", form | {"Last-Event-ID": "1"})
                for case_id in ids
                for _ in range(10)
            )
        )
        of_type = await asyncio.gather(*(open_one(PATH, watcher) for _ in range(100)))
        await _until(lambda: edge.metric("silogate_live_streams") == 500)
        # the events of these cases are not in the database: what comes, comes from the tail
        await _publish(edge, servers, mine)
        told = await asyncio.gather(*(_read(answer, 3) for answer in of_cases))
        assert {tuple(int(event.id) for event in one) for one in told} == {(2, 3, 4)}
        for one in await asyncio.gather(*(_read(answer, 120) for answer in of_type)):
            assert _by_case(_told(one)) == {UUID(case_id): [2, 3, 4] for case_id in ids}
        assert edge.metric("silogate_live_cut_total", reason="slow") == 0
        for answer in (*of_cases, *of_type):
            answer.close()


@asynccontextmanager
async def _many() -> AsyncIterator[ClientSession]:
    """A client that opens as many connections as it is asked to."""
    async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=120)) as session:
        yield session
