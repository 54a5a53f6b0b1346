"""Personal values go where they must and nowhere else: canaries are sent through everything, then looked for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.asyncio import Redis

from gateway.dev.addresses import Database, Servers
from gateway.dev.synthetic import claims
from tests.council import Town, report, town, until

SUBMITTER = {"name": "Canary Quillfeather", "email": "canary.quillfeather@example.org", "telephone": "07700 900777"}
NOTE = "My budgerigar Percival saw it from the window."
CANARIES = (*SUBMITTER.values(), "Quillfeather", "Percival")


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        yield made


@pytest.mark.timeout(180)
async def test_no_canary_is_found_where_it_does_not_belong(here: Town) -> None:
    """After a report and personal lookups, no log, metric, cache entry, Kafka record or table of ours shows a value."""
    await here.council.load(["claims"])
    await here.start("serve")
    await here.start("work")
    person = next(row for row in claims() if row["STATUS"] == "open")
    known = {"nino": person["NI_NUMBER"], "date_of_birth": person["DATE_OF_BIRTH"]}
    canaries = (*CANARIES, person["NI_NUMBER"], person["SURNAME"])
    case = await _submit_and_ask(here, known)
    await here.delivered("street-team", {case["reference"]: 3})

    async def mailed() -> bool | None:
        rows = await here.sql("select state from effect")
        return True if [row["state"] for row in rows] == ["done"] else None

    await until("the confirmation", mailed)
    found = {
        "logs": await asyncio.to_thread(_logs, here.council.logs),
        "metrics": await _metrics(here),
        "redis": await _redis(here.servers.redis_url),
        "kafka": await _kafka(here),
        "tables": await _tables(here.servers.postgres_url),
    }
    for where, text in found.items():
        assert len(text) > 500, f"{where} were not really looked at"
        shown = [canary for canary in canaries if canary.lower() in text.lower()]
        assert shown == [], f"{where} show {shown}"
    # the search itself works: the recipient, who may see the name, has it
    rows = await _all_rows(here.council.recipient_urls["street-team"], "street")
    assert SUBMITTER["name"] in rows


async def _submit_and_ask(here: Town, known: dict[str, str]) -> dict[str, Any]:
    document = report("litter", submitter=SUBMITTER, notes=[{"text": NOTE}])
    status, case, _ = await here.call("POST", "/v1/cases", document, Idempotency_Key=str(uuid4()))
    assert status == 201, case
    path = f"/v1/cases/{case['id']}"
    assert (await here.call("POST", f"{path}/notes", {"text": NOTE}))[0] == 201
    assert (await here.call("PATCH", path, {"status": "in_progress"}, If_Match='"2"'))[0] == 200
    # refusals must not echo either
    wrong = {**document, "submitter": {**SUBMITTER, "email": "Quillfeather at nowhere"}}
    assert (await here.call("POST", "/v1/cases", wrong, Idempotency_Key=str(uuid4())))[0] == 422
    for _ in range(3):
        for name in ("claim-already-open", "known-details"):
            status, body, _ = await here.call("POST", f"/v1/lookups/{name}", known, key=here.council.benefits_key)
            assert (status, body["verdict"]) == (200, "found")
            await asyncio.sleep(0.2)
    return dict(case)


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))


async def _metrics(here: Town) -> str:
    texts = []
    for port in ("admin", "worker"):
        async with here.http.get(here.council.address(port) + "/metrics") as answer:
            texts.append(await answer.text())
    return "\n".join(texts)


async def _redis(url: str) -> str:
    """Every key, with everything it holds."""
    shown: list[str] = []
    async with Redis.from_url(url) as redis:
        async for key in redis.scan_iter(count=1000):
            content = await redis.dump(key)
            shown += [key.decode("latin-1"), (content or b"").decode("latin-1")]
    text = "\n".join(shown)
    assert re.search(r"\{claims\}:lk:", text), "no answer about a person was cached, so nothing was tested"
    return text


async def _kafka(here: Town) -> str:
    """Every record of the case topic: key, headers and value."""
    topic = here.council.environment["SILOGATE_TOPIC_PREFIX"] + "cases.changes.v1"
    consumer = AIOKafkaConsumer(bootstrap_servers=here.servers.kafka_bootstrap, enable_auto_commit=False)
    await consumer.start()
    shown: list[str] = []
    try:
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        while len(shown) < 3:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                shown += [f"{record.key!r} {record.headers!r} {record.value!r}" for record in records]
    finally:
        await consumer.stop()
    return "\n".join(shown)


async def _tables(url: str) -> str:
    """Every row of the gateway's own schema, as text. Silo replicas are asked by value, and protected by access."""
    return await _all_rows(url, "gateway")


async def _all_rows(url: str, schema: str) -> str:
    connection = await asyncpg.connect(url, timeout=10)
    shown: list[str] = []
    try:
        names = await connection.fetch("select tablename from pg_tables where schemaname = $1", schema)
        for row in names:
            # a table's name cannot be a parameter; it comes from the catalogue
            rows = await connection.fetch(f'select t::text as row from "{schema}"."{row["tablename"]}" t')
            shown += [f"{row['tablename']} {one['row']}" for one in rows]
            binary = await connection.fetch(
                "select column_name from information_schema.columns"
                " where table_schema = $1 and table_name = $2 and data_type = 'bytea'",
                schema,
                row["tablename"],
            )
            for column in binary:
                values = await connection.fetch(
                    f'select "{column["column_name"]}" as value from "{schema}"."{row["tablename"]}"'
                )
                shown += [bytes(one["value"] or b"").decode("latin-1") for one in values]
    finally:
        await connection.close()
    return "\n".join(shown)
