"""A relay whose process stands still: another takes its buckets, and it sends nothing old when it comes back."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import CollectorRegistry

from streams.metrics import StreamMetrics
from streams.outbox import Relay, RelayLimits, producer
from streams.testing import case_event
from tests.integration.test_outbox import (
    QUICK,
    assert_nothing_lost_and_in_order,
    enqueue,
    everything_published,
    gate_to,
    metrics,
    pool,
    relaying,
    topic,
    topic_events,
    until,
    value,
    versions,
)
from tests.journal import Journal

__all__ = ["metrics", "pool", "topic"]


@pytest.fixture
def config(servers: Any, gateway_database: Any) -> dict[str, str]:
    return {"gateway": gateway_database.url, "bootstrap": servers.kafka_bootstrap}


@pytest.mark.parametrize("place", ["outbox.after_select", "outbox.after_mark"])
async def test_a_relay_that_stood_still_sends_nothing_old(
    config: dict[str, str],
    pool: asyncpg.Pool,
    topic: str,
    tmp_path: Path,
    place: str,
) -> None:
    """Frozen with events in hand, it has lost its buckets in seconds; going on, it sends none of these events."""
    case_id, count, metrics = uuid4(), 4, StreamMetrics(CollectorRegistry())
    for version in range(1, count + 1):
        await enqueue(pool, topic, case_event(version, case_id=case_id))
    async with Journal(path=tmp_path / "journal").kept() as journal:
        config |= {"fail": f"{place}:stop", "journal": journal.address}
        frozen = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.relay_process", json.dumps(config)
        )
        try:
            await until(_stood_still(journal))
            async with relaying(Relay(pool, lambda: producer(config["bootstrap"], "second"), metrics, limits=QUICK)):
                await until(lambda: everything_published(pool), bound_s=10)
                newer = count + 1
                await enqueue(pool, topic, case_event(newer, case_id=case_id))
                await until(lambda: everything_published(pool))
                before = await topic_events(config["bootstrap"], topic)
                frozen.send_signal(signal.SIGCONT)
                await until(_shared(pool))
            frozen.terminate()
            await asyncio.wait_for(frozen.wait(), 30)
        finally:
            if frozen.returncode is None:
                frozen.kill()
                await frozen.wait()
    after = await topic_events(config["bootstrap"], topic)
    assert versions(after) == versions(before), "it sent an old version after newer ones"
    assert_nothing_lost_and_in_order(after, {(case_id, version) for version in range(1, newer + 1)})


def _stood_still(journal: Journal) -> Any:
    async def seen() -> bool:
        return bool(journal.seen)

    return seen


def _shared(pool: asyncpg.Pool) -> Any:
    """Both relays are present again: the frozen one has noticed, and started anew."""

    async def shared() -> bool:
        found: int = await pool.fetchval(
            "select count(distinct pid) from pg_locks where locktype = 'advisory' and classid = $1::int::oid"
            " and objid = 0 and database = (select oid from pg_database where datname = current_database())",
            0x0517_0001,
        )
        return found == 2

    return shared


async def test_a_relay_that_waits_for_kafka_keeps_its_buckets(
    config: dict[str, str], pool: asyncpg.Pool, topic: str, metrics: StreamMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer without Kafka than Postgres endures silence: it says a word meanwhile, and no connection is lost."""
    limits = RelayLimits(poll_s=10, balance_s=0.2, silence_s=2, ack_timeout_s=5)
    made = []
    async with gate_to(config["bootstrap"], monkeypatch) as gate:

        def make() -> AIOKafkaProducer:
            made.append(True)
            if len(made) > 1:
                gate.release()
            return producer(config["bootstrap"], "relay")

        async with relaying(Relay(pool, make, metrics, limits=limits)):
            await enqueue(pool, topic, case_event(1))
            await until(lambda: everything_published(pool))
            gate.hold()
            await enqueue(pool, topic, case_event(1))
            await until(lambda: everything_published(pool))
    assert value(metrics.outbox_failures.labels("kafka")) == 1
    assert value(metrics.outbox_failures.labels("database")) == 0
