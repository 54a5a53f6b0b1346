"""A case's event stream on real Kafka and Postgres: history, then live, without gap or double, whatever goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from aiohttp import ClientResponse, ClientTimeout
from prometheus_client import CollectorRegistry

from gateway.context import EdgeOptions
from gateway.dev.addresses import Database, Servers
from gateway.dev.sse import Message, messages
from gateway.dev.stack import Stack
from streams.metrics import StreamMetrics
from streams.outbox import Relay, RelayLimits, producer
from streams.topics import ensure_topics
from tests.integration.edge import Edge, problem_of, running_edge

QUICK = RelayLimits(poll_s=0.05, balance_s=0.1, ack_timeout_s=60)
# A heartbeat so far off that only Kafka can be quicker, and one that comes soon.
RARELY, OFTEN = EdgeOptions(heartbeat_s=60), EdgeOptions(heartbeat_s=0.2)


@asynccontextmanager
async def _live_edge(
    database: Database, servers: Servers, folder: Path, prefix: str, options: EdgeOptions
) -> AsyncIterator[Edge]:
    """An edge with its tail in place, and a relay that publishes."""
    topic = f"{prefix}cases.changes.v1"
    await ensure_topics(servers.kafka_bootstrap, [topic], 3, 1)
    async with running_edge(
        database.url, folder, kafka=servers.kafka_bootstrap, topic=topic, live=True, options=options
    ) as edge:
        await _until(lambda: edge.metric("silogate_live_tail_up") == 1)
        stop = asyncio.Event()
        relay = Relay(
            edge.context.pool,
            lambda: producer(servers.kafka_bootstrap, "relay", request_timeout_ms=60_000),
            StreamMetrics(CollectorRegistry()),
            limits=QUICK,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.run(stop))
            yield edge
            stop.set()


@asynccontextmanager
async def _stream(
    edge: Edge, case_id: str, last: str | None = None, *, key: str = "form"
) -> AsyncIterator[ClientResponse]:
    headers = {} if last is None else {"Last-Event-ID": last}
    path, timeout = f"/v1/cases/{case_id}/events", ClientTimeout(total=60)
    answer = await edge.ask("GET", path, key=key, headers=headers, timeout=timeout)
    try:
        assert answer.status == 200, await answer.text()
        yield answer
    finally:
        answer.close()


async def _read(answer: ClientResponse, count: int) -> list[Message]:
    """The next events, comments left out."""
    events: list[Message] = []
    async with asyncio.timeout(20):
        async for message in messages(answer):
            if message.event != "comment" and message.data:
                events.append(message)
                if len(events) == count:
                    break
    return events


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def _note(edge: Edge, case_id: str, text: str = "Seen.") -> None:
    answer = await edge.ask("POST", f"/v1/cases/{case_id}/notes", json={"text": text})
    assert answer.status == 201


def _versions(events: list[Message]) -> list[int]:
    return [int(event.id) for event in events]


async def test_history_comes_first_then_what_happens(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """One stream tells the past and the present, by version, with nothing personal in it."""
    async with _live_edge(gateway_database, servers, tmp_path, topic_prefix, RARELY) as edge:
        case_id = (await edge.create())["id"]
        await _note(edge, case_id, "Needle beside the basin, says Avery Quill.")
        async with _stream(edge, case_id) as answer:
            assert answer.content_type == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            past = await _read(answer, 2)
            await edge.ask("PATCH", f"/v1/cases/{case_id}", json={"status": "fixed"}, headers={"If-Match": '"2"'})
            (now,) = await _read(answer, 1)
        assert [(event.id, event.event) for event in [*past, now]] == [
            ("1", "case.created"),
            ("2", "case.noted"),
            ("3", "case.updated"),
        ]
        data: dict[str, Any] = orjson.loads(now.data)
        assert data.keys() == {"version", "type", "at", "status", "changed"}
        assert (data["version"], data["status"], data["changed"]) == (3, "fixed", ["status"])
        assert "Avery" not in str(past)
        assert "Needle" not in str(past)


async def test_many_streams_with_reconnects_see_each_version_once_and_in_order(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str
) -> None:
    """Ten readers that come and go with Last-Event-ID while a case changes: no gap, no double."""
    async with _live_edge(gateway_database, servers, tmp_path, topic_prefix, RARELY) as edge:
        case_id, last = (await edge.create())["id"], 41

        async def follow(step: int) -> list[int]:
            seen: list[int] = []
            while not seen or seen[-1] < last:
                async with _stream(edge, case_id, str(seen[-1]) if seen else None) as answer:
                    seen += _versions(await _read(answer, min(step, last - len(seen))))
            return seen

        async def change() -> None:
            for number in range(2, last + 1):
                await _note(edge, case_id, f"Note {number}.")

        *seen, _ = await asyncio.gather(*(follow(step) for step in range(1, 11)), change())
        assert seen == [list(range(1, last + 1))] * 10


async def test_a_stream_advances_without_kafka(gateway_database: Database, tmp_path: Path) -> None:
    """With no broker at all, the heartbeat's look into Postgres finds what is new."""
    async with running_edge(gateway_database.url, tmp_path, live=True, options=OFTEN) as edge:
        case_id = (await edge.create())["id"]
        async with _stream(edge, case_id) as answer:
            assert _versions(await _read(answer, 1)) == [1]
            for version in (2, 3):
                await _note(edge, case_id)
                assert _versions(await _read(answer, 1)) == [version]
        assert edge.metric("silogate_live_tail_up") == 0


async def test_the_tail_survives_a_restart_of_kafka(
    gateway_database: Database, servers: Servers, tmp_path: Path, topic_prefix: str, stack: Stack
) -> None:
    """While the broker is away the metric says so; afterwards events flow again, none left out."""
    async with _live_edge(gateway_database, servers, tmp_path, topic_prefix, RARELY) as edge:
        case_id = (await edge.create())["id"]
        async with _stream(edge, case_id) as answer:
            assert _versions(await _read(answer, 1)) == [1]
            await stack.control("kafka", "stop")
            await _note(edge, case_id)
            await _until(lambda: edge.metric("silogate_live_tail_up") == 0)
            await stack.control("kafka", "start")
            await _note(edge, case_id)
            assert _versions(await _read(answer, 2)) == [2, 3]
            await _until(lambda: edge.metric("silogate_live_tail_up") == 1)


@pytest.mark.parametrize("version", ["2", "999"])
async def test_a_reader_says_where_it_was(gateway_database: Database, tmp_path: Path, version: str) -> None:
    """After Last-Event-ID only what is new; an id that the case never had gets the whole history."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        case_id = (await edge.create())["id"]
        await _note(edge, case_id)
        await _note(edge, case_id)
        async with _stream(edge, case_id, version) as answer:
            assert _versions(await _read(answer, 1 if version == "2" else 3)) == ([3] if version == "2" else [1, 2, 3])
        for header in ("-1", "x", "01", "1" * 40):
            refused = await edge.ask("GET", f"/v1/cases/{case_id}/events", headers={"Last-Event-ID": header})
            assert await problem_of(refused) == (400, "malformed_last_event_id", "Last-Event-ID")


async def test_a_quiet_stream_beats_and_a_drained_one_ends(gateway_database: Database, tmp_path: Path) -> None:
    """Comments keep proxies from closing it; a process that drains ends it cleanly."""
    async with running_edge(gateway_database.url, tmp_path, options=OFTEN) as edge:
        case_id = (await edge.create())["id"]
        async with _stream(edge, case_id, "1") as answer:
            assert (await answer.content.readuntil(b"\n\n")).startswith(b"retry: ")
            assert await answer.content.readuntil(b"\n\n") == b": still here\n\n"
            edge.context.live.close()
            async with asyncio.timeout(10):
                await answer.content.read()
        async with _stream(edge, case_id) as answer, asyncio.timeout(10):
            assert b"id: 1\n" in await answer.content.read()
        await _until(lambda: edge.metric("silogate_live_streams") == 0)
        assert not edge.context.live._watched


@pytest.mark.parametrize("change", ["revoked_at = now()", "scopes = '{cases:read}'"])
async def test_a_stream_ends_with_the_key_that_opened_it(
    gateway_database: Database, tmp_path: Path, change: str
) -> None:
    """A key that is revoked or loses its scope closes its own open stream, and no other key's."""
    async with running_edge(gateway_database.url, tmp_path, options=OFTEN) as edge:
        case_id, keys = (await edge.create())["id"], edge.context.keys
        edge.tokens["other"] = await keys.add("other", ["events:read"])
        async with _stream(edge, case_id) as answer, _stream(edge, case_id, key="other") as other:
            await edge.context.pool.execute(
                f"update api_key set {change} where id = $1", edge.tokens["form"].split("_")[1]
            )
            async with asyncio.timeout(20):
                assert b"id: 1\n" in await answer.content.read()
            await _until(lambda: edge.metric("silogate_live_streams") == 1)
            assert _versions(await _read(other, 1)) == [1]


async def test_a_busy_stream_ends_with_its_key_too(gateway_database: Database, tmp_path: Path) -> None:
    """News without a pause do not put off the question whether the key still serves."""
    async with running_edge(gateway_database.url, tmp_path, options=OFTEN) as edge:
        case_id = (await edge.create())["id"]
        (first,) = await edge.context.cases.history(UUID(case_id))
        async with _stream(edge, case_id) as answer, asyncio.timeout(20):
            await edge.context.keys.revoke(edge.tokens["form"].split("_")[1])
            version = 1
            while edge.metric("silogate_live_streams") == 1:
                version += 1
                edge.context.live.publish(_at(first, version))
                await asyncio.sleep(0.01)
            await answer.content.read()
        assert edge.metric("silogate_live_cut_total", reason="slow") == 0


async def test_a_stream_outlives_a_database_that_cannot_be_asked_about_its_key(
    gateway_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a refusal ends the stream; an outage does not."""

    async def away(_: str | None) -> None:
        asked.append(True)
        raise ConnectionRefusedError

    asked: list[bool] = []
    async with running_edge(gateway_database.url, tmp_path, options=OFTEN) as edge:
        case_id = (await edge.create())["id"]
        async with _stream(edge, case_id) as answer:
            monkeypatch.setattr(edge.context.keys, "known", lambda _: None)
            monkeypatch.setattr(edge.context.keys, "principal", away)
            await _until(lambda: len(asked) >= 3)
            edge.context.live.publish(_at((await edge.context.cases.history(UUID(case_id)))[0], 2))
            assert _versions(await _read(answer, 2)) == [1, 2]


async def test_a_long_history_comes_whole(gateway_database: Database, tmp_path: Path) -> None:
    """More events than one page of the history."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        case_id = (await edge.create())["id"]
        await edge.context.pool.execute(
            "insert into case_event select case_id, v, gen_random_uuid(), 'case.updated', at, origin, actor,"
            " correlation_id, hops, changed, document, sealed from case_event, generate_series(2, 450) v"
        )
        await edge.context.pool.execute("update cases set version = 450")
        async with _stream(edge, case_id) as answer:
            versions = _versions(await _read(answer, 450))
        assert versions[0] == 1
        assert all(after == before + 1 for before, after in pairwise(versions))


async def test_a_slow_reader_is_cut_and_the_others_are_not(gateway_database: Database, tmp_path: Path) -> None:
    """A full queue ends its own stream; what it missed is there when it comes back."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        case_id = (await edge.create())["id"]
        (first,) = await edge.context.cases.history(UUID(case_id))
        live, cut = edge.context.live, asyncio.Event()
        with live.subscribe(UUID(case_id), cut.set) as slow, live.subscribe(UUID(case_id), cut.clear) as quick:
            for version in range(1, 31):
                live.publish(_at(first, version))
                quick.take()
                quick.told = version
        assert cut.is_set()
        assert slow.cut
        assert not quick.cut
        assert slow.take() == ([], 0)
        assert edge.metric("silogate_live_cut_total", reason="slow") == 1


async def test_a_reader_that_takes_nothing_is_hung_up_on(gateway_database: Database, tmp_path: Path) -> None:
    """When the socket takes no more within the time, the stream ends and gives its place back."""
    options = EdgeOptions(heartbeat_s=0.05, stream_write_timeout_s=0.3)
    async with running_edge(gateway_database.url, tmp_path, options=options) as edge:
        case_id = (await edge.create())["id"]
        (first,) = await edge.context.cases.history(UUID(case_id))
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.public.port, limit=1024)
        writer.write(
            f"GET /v1/cases/{case_id}/events HTTP/1.1\r\nHost: silogate\r\n"
            f"Authorization: Bearer {edge.tokens['form']}\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        await _until(lambda: edge.metric("silogate_live_streams") == 1)
        version = 1
        async with asyncio.timeout(60):
            while edge.metric("silogate_live_streams") == 1:
                for _ in range(10):
                    version += 1
                    edge.context.live.publish(_at(first, version, changed=("x" * 60_000,)))
                await asyncio.sleep(0.01)
        writer.close()
        reasons = ("slow", "write_timeout")
        assert sum(edge.metric("silogate_live_cut_total", reason=reason) for reason in reasons) >= 1


async def test_streams_have_a_limit_of_their_own(gateway_database: Database, tmp_path: Path) -> None:
    """One stream too many is 503; requests are not held up by open streams."""
    async with running_edge(
        gateway_database.url, tmp_path, options=EdgeOptions(max_streams=1), max_in_flight=1
    ) as edge:
        case_id = (await edge.create())["id"]
        async with _stream(edge, case_id):
            refused = await edge.ask("GET", f"/v1/cases/{case_id}/events")
            assert await problem_of(refused) == (503, "overloaded", None)
            assert refused.headers["Retry-After"] == "1"
            assert (await edge.ask("GET", f"/v1/cases/{case_id}")).status == 200


def _at(event: Any, version: int, **changed: Any) -> Any:
    from dataclasses import replace

    return replace(event, version=version, **changed)
