"""`silogate lookups` and `silogate cache` on a running council."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.dev.addresses import Database, Servers
from tests.command_line import run
from tests.council import Town, town, until

_TOILET = "60002210"


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    """A council whose silos are loaded and whose gateway serves."""
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        await made.council.load()
        await made.start("serve")
        yield made


async def test_list_and_describe_say_what_is_declared(here: Town) -> None:
    """Each lookup with its silo and parameters; one in full with its SQL, what touches it and how to ask it."""
    environment = here.council.environment
    listed = await run(environment, "lookups", "list", "--json")
    assert listed.code == 0, listed.words
    rows = {row["lookup"]: row for row in json.loads(listed.data)}
    assert rows["asset-by-uprn"]["parameters"] == {"uprn": "uprn"}
    assert rows["known-details"]["personal"] is True
    described = await run(environment, "lookups", "describe", "asset-by-uprn")
    assert "a change to a row of toilet whose index uprn is :uprn" in described.words
    assert "where uprn = :uprn" in described.words
    assert f"silogate lookups try asset-by-uprn 'uprn={_TOILET}'" in described.words
    unknown = await run(environment, "lookups", "describe", "asset-by-uprm")
    assert unknown.code == 2
    assert "asset-by-uprn" in unknown.words


async def test_try_says_where_the_answer_came_from(here: Town) -> None:
    """A miss, then a hit with its age, tags and timings; a malformed value is named; nothing personal in arguments."""
    environment = here.council.environment

    async def tried() -> dict[str, object]:
        printed = await run(environment, "lookups", "try", "asset-by-uprn", _TOILET, "--json")
        assert printed.code == 0, printed.words
        return dict(json.loads(printed.data))

    first = await tried()
    assert (first["verdict"], first["rows"], first["source"]) == ("found", 1, "miss")
    again = await tried()
    assert again["source"] == "hit"
    assert again["tags"] == first["tags"] != []
    assert isinstance(again["age_s"], float)
    assert isinstance(again["redis_ms"], float)
    shown = await run(environment, "lookups", "try", "asset-by-uprn", f"uprn={_TOILET}")
    assert "hit: from the cache" in shown.words
    assert "MONKS" in shown.data
    wrong = await run(environment, "lookups", "try", "asset-by-uprn", "Monks")
    assert wrong.code == 2
    assert "uprn" in wrong.words
    assert "Monks" not in wrong.words


async def test_a_personal_question_is_asked_by_stdin_and_audited(here: Town) -> None:
    """Refused in arguments, answered from standard input without its rows, one audit row without a value."""
    environment = here.council.environment
    refused = await run(environment, "lookups", "try", "claim-already-open", "QQ123456C", "1980-01-31")
    assert refused.code == 2
    assert "never stand in a command line" in refused.words
    question = json.dumps({"nino": "QQ123456C", "date_of_birth": "1980-01-31"})
    answered = await run(environment, "lookups", "try", "claim-already-open", "-", "--json", stdin=question)
    assert answered.code == 0, answered.words
    assert json.loads(answered.data)["verdict"] in {"found", "not_found"}
    assert "results" not in json.loads(answered.data)
    rows = await here.sql(
        "select actor, outcome, subject from gateway.audit where action = 'lookup.claim-already-open'"
    )
    assert [(row["actor"], row["outcome"]) for row in rows] == [("cli", "tried")]
    assert "QQ123456C" not in rows[0]["subject"]


async def test_the_cache_is_filled_looked_at_and_emptied(here: Town) -> None:
    """warm keeps every key of the silo, stats counts them, purge leaves none, and the next answer is right again."""
    environment = here.council.environment
    warmed = await run(environment, "cache", "warm", "asset-by-uprn", "--json")
    assert warmed.code == 0, warmed.words
    assert {name: json.loads(warmed.data)[name] for name in ("asked", "kept", "not_kept")} == {
        "asked": 13, "kept": 13, "not_kept": 0,
    }  # fmt: skip

    async def kept() -> dict[str, object]:
        printed = await run(environment, "cache", "stats", "--json")
        return next(dict(row) for row in json.loads(printed.data) if row["silo"] == "assets")

    before = await kept()
    # the toilets, and the canary that the running gateway reads
    assert before["entries"] in {13, 14}
    assert before["behind"] == 0
    purged = await run(environment, "cache", "purge", "assets", "--json")
    assert purged.code == 0, purged.words
    assert json.loads(purged.data)["removed"] in {13, 14}
    assert (await kept())["entries"] in {0, 1}
    status, body, _ = await here.lookup("asset-by-uprn", uprn=_TOILET)
    assert (status, body["verdict"]) == (200, "found")
    assert body["as_of"]["token"].split(":")[1] != before["epoch"]


async def test_only_what_can_be_kept_is_warmed(here: Town, tmp_path: Path) -> None:
    """Personal lookups and lookups over cases are refused; a file of keys is read line by line, mistakes by line."""
    environment = here.council.environment
    for name, why in (("known-details", "personal"), ("asset-already-reported", "never kept")):
        refused = await run(environment, "cache", "warm", name)
        assert refused.code == 2
        assert why in refused.words
    keys = tmp_path / "keys.txt"
    keys.write_text(f'{_TOILET}\n{{"uprn": "100"}}\n', encoding="utf-8")
    warmed = await run(environment, "cache", "warm", "asset-by-uprn", "--keys", str(keys), "--json")
    assert json.loads(warmed.data)["asked"] == 2
    keys.write_text(f"{_TOILET}\nnowhere\n", encoding="utf-8")
    wrong = await run(environment, "cache", "warm", "asset-by-uprn", "--keys", str(keys))
    assert wrong.code == 2
    assert f"{keys}:2: " in wrong.words.replace("\n", "")


async def test_what_is_away_is_named_in_a_sentence(here: Town) -> None:
    """Redis or the audit table away: an exit code and a sentence; a warmed cache that keeps nothing is a failure."""
    without_redis = {**here.council.environment, "SILOGATE_REDIS_URL": "redis://127.0.0.1:1/0"}
    for command in (("cache", "stats"), ("cache", "purge", "assets")):
        found = await run(without_redis, *command)
        assert found.code == 1
        assert "Redis cannot be used" in found.words
        assert "Traceback" not in found.words
    warmed = await run(without_redis, "cache", "warm", "asset-with-reports", "--json")
    assert warmed.code == 1
    assert json.loads(warmed.data)["not_kept"] == 13
    await here.sql("alter table gateway.audit rename to elsewhere")
    question = json.dumps({"nino": "QQ123456C", "date_of_birth": "1980-01-31"})
    tried = await run(here.council.environment, "lookups", "try", "claim-already-open", "-", stdin=question)
    await here.sql("alter table gateway.elsewhere rename to audit")
    assert tried.code == 1
    assert "leaves an audit row" in tried.words
    assert "Traceback" not in tried.words


async def test_stats_fails_while_redis_follows_another_epoch(here: Town) -> None:
    """A state of an epoch that is not the silo's own counts as not followed, whatever its number."""
    environment = here.council.environment

    async def followed() -> bool | None:
        printed = await run(environment, "cache", "stats", "--json")
        assert printed.code == (0 if all(row["followed"] for row in json.loads(printed.data)) else 1)
        return True if printed.code == 0 else None

    await until("every silo followed", followed)
    for child in here.children:
        await child.stop()
    await here.sql("update silo_assets.progress set epoch = 'another'")
    printed = await run(environment, "cache", "stats", "--json")
    assert printed.code == 1
    rows = {row["silo"]: row for row in json.loads(printed.data)}
    assert (rows["assets"]["followed"], rows["assets"]["behind"]) == (False, None)
    assert rows["claims"]["followed"] is True
