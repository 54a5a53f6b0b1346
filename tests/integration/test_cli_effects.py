"""`silogate effects` as an operator uses it: a process of its own, on the gateway's database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from gateway.dev.addresses import Database, Servers
from tests.command_line import run
from tests.council import Town, town
from tests.effects import auditing, effects, ledger, open_pool, plan_confirmation, running, settled
from tests.providers import NoneSink


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        # the first command that opens the deployment brings its database to shape
        printed = await run(made.council.environment, "effects", "show", str(uuid4()))
        assert printed.code == 1
        assert "there is no effect" in printed.words
        yield made


async def unknown_effect(here: Town) -> UUID:
    async with open_pool(here.council.environment["SILOGATE_DATABASE_URL"]) as pool, auditing(pool) as audit:
        await plan_confirmation(pool)
        async with running(ledger(pool, NoneSink("lost"), audit)):
            effect_id: UUID = (await settled(pool, "unknown"))["effect_id"]
    return effect_id


async def test_an_unknown_effect_is_listed_and_resolved(here: Town) -> None:
    """Listed with its reason, resolved once with a reason that is audited, refused the second time."""
    environment = here.council.environment
    effect_id = await unknown_effect(here)
    shown = await run(environment, "effects", "list", "--state", "unknown", "--json")
    assert shown.code == 0, shown.words
    (row,) = json.loads(shown.data)
    assert (row["effect_id"], row["state"], row["reason"]) == (str(effect_id), "unknown", "http:reset")
    table = await run(environment, "effects", "list", "--case", row["reference"])
    assert str(effect_id) in table.data
    assert "unknown" in table.data

    done = ("effects", "resolve", str(effect_id), "done", "--reason", "in their log", "--reference", "tel-7")
    assert (await run(environment, *done)).code == 0
    again = await run(environment, *done)
    assert again.code == 1
    assert "the effect is done, not unknown" in again.words
    rows = await here.sql(
        "select actor, outcome, detail ->> 'reason' from gateway.audit where action = 'effect.resolved'"
    )
    assert [tuple(row) for row in rows] == [("cli", "done", "in their log")]
    empty = await run(environment, "effects", "list", "--json")
    assert json.loads(empty.data) == []


async def test_wrong_calls_are_told_apart(here: Town) -> None:
    """What is no id, no outcome or no reason is a wrong call, 2; what is not there is a failure, 1."""
    environment = here.council.environment
    some = str(uuid4())
    for arguments in (
        ("resolve", "Monks", "done", "--reason", "x"),
        ("resolve", some, "sent", "--reason", "x"),
        ("resolve", some, "done", "--reason", " "),
        ("resolve", some, "failed", "--reason", "x", "--reference", "tel-7"),
        ("resolve", some, "done"),
        ("show", "Monks"),
    ):
        assert (await run(environment, "effects", *arguments)).code == 2, arguments
    assert (await run(environment, "effects", "resolve", some, "done", "--reason", "x")).code == 1


async def test_a_held_sink_is_shown_and_released(here: Town) -> None:
    """A held effect says how to release it, and release lets it go."""
    environment = here.council.environment
    async with open_pool(environment["SILOGATE_DATABASE_URL"]) as pool:
        await plan_confirmation(pool)
        await pool.execute("update effect set held = 'first_run'")
        (effect,) = await effects(pool)
        shown = await run(environment, "effects", "show", str(effect["effect_id"]))
        assert shown.code == 0, shown.words
        assert "first_run" in shown.data
        assert "silogate effects release email" in shown.words
        assert "nothing is rendered yet" in shown.words
        released = await run(environment, "effects", "release", "email", "--json")
        assert json.loads(released.data) == {"sink": "email", "released": 1}
        assert (await effects(pool))[0]["held"] is None
