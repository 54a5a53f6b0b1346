"""`silogate dlq` as an operator uses it: what a recipient refused is seen, rehearsed, given up, tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer

from gateway.dev.addresses import Database, Servers
from streams.topics import dead_letter_topic
from tests.command_line import run
from tests.council import Town, town, until


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        yield made


async def test_from_refused_to_delivered(here: Town) -> None:
    """Three cases are parked by a rule of the recipient; one is given up, the rule goes, and the others arrive."""
    environment = here.council.environment
    await _at_team(here, "alter table street.job add constraint no_litter check (job_type <> 'LITTER_TOILET')")
    await here.start("serve")
    await here.start("work")
    cases = [await here.submit() for _ in range(3)]
    listed = await _parked(here, 3)
    group = listed[0]["group"]
    assert group.endswith("silogate.recipient.street-team")
    assert {(row["stage"], row["field"], row["events"]) for row in listed} == {("handler", "no_litter", 1)}
    ids = {row["case_id"] for row in listed}
    assert await _copied(here, listed[0]["topic"], group) == ids
    given_up, *kept = sorted(ids)

    words = await run(environment, "dlq", "list", "--field", "no_litter")
    assert words.code == 0, words.words
    assert all(one in words.data for one in ids)
    shown = await run(environment, "dlq", "show", group, given_up, "--json")
    assert shown.code == 0, shown.words
    assert [event["version"] for event in json.loads(shown.data)["waiting"]] == [1]
    assert (await run(environment, "dlq", "show", group, given_up)).code == 0
    absent = await run(environment, "dlq", "show", group, "7c7558ec-beb4-4179-a9ca-a3364473116d")
    assert (absent.code, "is not parked" in absent.words) == (1, True)

    dry = await run(environment, "dlq", "replay", group, "--case", kept[0])
    assert dry.code == 0, dry.words
    assert "LITTER_TOILET" in dry.data
    assert "(differs)" in dry.data
    assert "Whitfield" not in dry.data + dry.words
    assert await here.sql("select count(*) from gateway.parked_event") == [(3,)]

    unsaid = await run(environment, "dlq", "drop", group, "--reason", "test")
    assert (unsaid.code, "say which cases" in unsaid.words) == (2, True)
    dropped = await run(environment, "dlq", "drop", group, "--case", given_up, "--reason", "sent twice", "--json")
    assert dropped.code == 0, dropped.words
    assert json.loads(dropped.data)["dropped"] == 1
    again = await run(environment, "dlq", "drop", group, "--case", given_up, "--reason", "sent twice")
    assert again.code == 1

    await _at_team(here, "alter table street.job drop constraint no_litter")
    one = await run(environment, "dlq", "replay", group, "--case", kept[0], "--go", "--json")
    assert (one.code, json.loads(one.data)["asked"]) == (0, 1)
    await _parked(here, 1)
    rest = await run(environment, "dlq", "resume", group)
    assert rest.code == 0, rest.words
    await _parked(here, 0)
    assert len(await here.at_recipient("street-team")) == len(cases) - 1
    rows = await here.sql("select action, subject, actor from gateway.audit where action like 'parked.%' order by at")
    assert [tuple(row) for row in rows] == [
        ("parked.drop", given_up, "cli"),
        ("parked.replay", kept[0], "cli"),
        ("parked.replay", kept[1], "cli"),
    ]


async def test_a_group_that_is_no_recipient_is_tried_again_unseen(here: Town) -> None:
    """There is nothing to compare with; the words say what can be done. Nothing parked is 1, a wrong call 2."""
    environment = here.council.environment
    await here.start("work")
    dry = await run(environment, "dlq", "replay", "silogate.flow.report-a-problem")
    assert (dry.code, "nothing to compare with" in dry.words) == (1, True)
    none = await run(environment, "dlq", "replay", "silogate.flow.report-a-problem", "--go")
    assert (none.code, "no such case" in none.words) == (1, True)
    assert (await run(environment, "dlq", "replay")).code == 2
    assert json.loads((await run(environment, "dlq", "list", "--json")).data) == []


async def _at_team(here: Town, statement: str) -> None:
    connection = await asyncpg.connect(here.council.recipient_urls["street-team"])
    await connection.execute(statement)
    await connection.close()


async def _copied(here: Town, topic: str, group: str) -> set[str]:
    """The cases of the first three records in the group's dead letter topic."""
    reader = AIOKafkaConsumer(
        dead_letter_topic(topic, group),
        bootstrap_servers=here.servers.kafka_bootstrap,
        auto_offset_reset="earliest",
    )
    await reader.start()
    try:
        async with asyncio.timeout(30):
            return {(await reader.getone()).key.decode() for _ in range(3)}
    finally:
        await reader.stop()


async def _parked(here: Town, number: int) -> list[dict[str, Any]]:
    """What `dlq list` says once so many cases are parked."""

    async def look() -> bool | None:
        return True if await here.sql("select count(*) from gateway.parked_key") == [(number,)] else None

    await until(f"{number} parked", look)
    found = await run(here.council.environment, "dlq", "list", "--json")
    assert found.code == 0, found.words
    rows: list[dict[str, Any]] = json.loads(found.data)
    assert len(rows) == number
    return rows
