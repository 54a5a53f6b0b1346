"""The command line as an operator uses it: real processes, real servers, exit codes and what is printed."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.dev.addresses import Database, Servers
from gateway.dev.stack import Stack
from tests.command_line import run
from tests.council import MONKS, Town, town, until


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        yield made


async def test_doctor_names_each_dependency_and_what_is_wrong(here: Town, stack: Stack) -> None:
    """Versions of all that answer; a silo that was never loaded, a dead address and a lagging replica are named."""
    environment = here.council.environment
    await here.start("work")
    await here.council.load()
    found = await run(environment, "doctor")
    assert found.code == 0, found.words
    for name in (
        "postgresql primary: PostgreSQL 18",
        "postgresql replica 1: ",
        "redis: Valkey 9",
        "kafka: 1 broker",
        "smtp: answers 250",
        "silo assets: source of ",
        "recipient contractor: PostgreSQL 18",
    ):
        assert name in found.words, found.words
    wrong = {**environment, "SILOGATE_REDIS_URL": "redis://:hunter2@127.0.0.1:1/0"}
    found = await run(wrong, "doctor", "--json")
    assert found.code == 1
    rows = {row["name"]: row for row in json.loads(found.data)}
    assert [name for name, row in rows.items() if not row["ok"]] == ["redis"]
    assert "hunter2" not in found.data + found.words
    await stack.control("replica", "pause")
    try:
        await here.sql("create table gateway.lagging as select 1 as x")

        async def lag_is_seen() -> bool | None:
            again = await run(environment, "doctor", "--json")
            rows = {row["name"]: row for row in json.loads(again.data)}
            return True if " 0 bytes behind" not in rows["postgresql replica 1"]["detail"] else None

        await until("bytes behind the primary", lag_is_seen)
    finally:
        await stack.control("replica", "resume")


async def test_doctor_says_how_to_begin(here: Town) -> None:
    """On a fresh installation each thing that is missing comes with the command that makes it."""
    found = await run(here.council.environment, "doctor")
    assert found.code == 1
    assert "`silogate load assets` makes and fills them" in found.words
    assert "`silogate work` makes it" in found.words


async def test_load_reports_and_keeps_the_rejects(here: Town) -> None:
    """A dry run changes nothing; a load counts what it did and leaves the report of what it refused, with reasons."""
    environment = here.council.environment
    dry = await run(environment, "load", "assets", "--dry-run", "--json")
    assert dry.code == 0, dry.words
    assert json.loads(dry.data)["added"] == 13
    assert await here.sql("select count(*) as n from silo_assets.toilet") == [(0,)]
    done = await run(environment, "load", "assets")
    assert done.code == 0, done.words
    assert "13 added, 0 changed, 0 removed, 0 unchanged, 2 rejected" in done.words
    with (here.council.root / "reports" / "assets-rejects.csv").open(encoding="utf-8-sig", newline="") as report:
        rejects = list(csv.DictReader(report))
    assert {row["row"] for row in rejects} == {"2", "4"}
    assert all(row["reason"] for row in rejects)
    again = await run(environment, "load", "assets", "--json")
    assert {name: json.loads(again.data)[name] for name in ("added", "changed", "removed", "unchanged")} == {
        "added": 0,
        "changed": 0,
        "removed": 0,
        "unchanged": 13,
    }
    unknown = await run(environment, "load", "toilets")
    assert unknown.code == 2
    assert "there is no silo toilets; there are: addresses, assets, claims" in unknown.words


async def test_a_key_is_made_shown_once_and_revoked(here: Town) -> None:
    """The printed key opens what its scopes say, `list` never shows it, and after `revoke` it opens nothing."""
    environment = here.council.environment
    await here.start("serve")
    made = await run(environment, "keys", "add", "a test", "--scope", "lookups:asset-already-reported", "--json")
    assert made.code == 0, made.words
    key = json.loads(made.data)["key"]
    path = f"/v1/lookups/asset-already-reported?uprn={MONKS['uprn']}"
    assert (await here.call("GET", path, key=key))[0] == 200
    assert (await here.call("GET", "/v1/lookups/asset-by-uprn?uprn=1", key=key))[0] == 403
    listed = await run(environment, "keys", "list", "--json")
    (row,) = [row for row in json.loads(listed.data) if row["name"] == "a test"]
    assert key.rsplit("_", 1)[1] not in listed.data
    assert (await run(environment, "keys", "revoke", row["id"])).code == 0

    async def refused() -> bool | None:
        return True if (await here.call("GET", path, key=key))[0] == 401 else None

    await until("the revoked key refused", refused, timeout_s=15)
    again = await run(environment, "keys", "revoke", row["id"])
    assert (again.code, f"there is no active key {row['id']}" in again.words) == (1, True)
    rows = await here.sql(
        "select action, actor, subject, detail::text from gateway.audit where actor = 'cli' order by at"
    )
    assert [row[:3] for row in rows] == [("key.add", "cli", row["id"]), ("key.revoke", "cli", row["id"])]
    assert key.rsplit("_", 1)[1] not in str(rows)


@pytest.mark.parametrize("scope", ["everything", "lookups:BAD_NAME", "lookups:"])
async def test_a_scope_that_no_route_knows_is_refused(here: Town, scope: str) -> None:
    """The command line and the gateway know the same scopes, and the sentence lists them."""
    wrong = await run(here.council.environment, "keys", "add", "a test", "--scope", scope)
    assert (wrong.code, f"'{scope}' is not a scope; scopes are lookups:<name>" in wrong.words) == (2, True)
    unnamed = await run(here.council.environment, "keys", "add", " ", "--scope", "cases:read")
    assert (unnamed.code, "a key needs a name" in unnamed.words) == (2, True)


@pytest.mark.parametrize("arguments", [("add", "a test", "--scope", "cases:read"), ("list",), ("revoke", "abc")])
async def test_keys_without_the_database_say_so(here: Town, arguments: tuple[str, ...]) -> None:
    """PostgreSQL away, or without the gateway's schema: one sentence, exit 1, no password."""
    environment = here.council.environment
    away = {**environment, "SILOGATE_DATABASE_URL": "postgresql://silogate:hunter2@127.0.0.1:1/silogate"}
    bare = {**environment, "SILOGATE_DATABASE_URL": environment["SILOGATE_RECIPIENT_CONTRACTOR_URL"]}
    for found in [await run(away, "keys", *arguments), await run(bare, "keys", *arguments)]:
        assert (found.code, found.data) == (1, "")
        assert "PostgreSQL cannot be used" in found.words
        assert "Traceback" not in found.words
        assert "hunter2" not in found.words


@pytest.mark.parametrize(
    ("command", "setting"),
    [("serve", "SILOGATE_PORT"), ("serve", "SILOGATE_ADMIN_PORT"), ("work", "SILOGATE_WORKER_PORT")],
)
async def test_a_port_in_use_is_named(here: Town, command: str, setting: str) -> None:
    """Whoever starts a second gateway beside the first reads which setting to change."""
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with taken:
        port = str(taken.sockets[0].getsockname()[1])
        found = await run({**here.council.environment, setting: port}, command)
    assert found.code == 1, found.words
    assert f"{setting}: 127.0.0.1:{port} cannot be listened on" in found.words
    assert "Traceback" not in found.words


async def test_a_host_of_another_machine_and_a_bad_sender_are_named(here: Town) -> None:
    """What shows only once everything is being started is said like what shows at once."""
    found = await run({**here.council.environment, "SILOGATE_HOST": "nowhere.invalid"}, "serve")
    assert (found.code, "SILOGATE_PORT: nowhere.invalid:" in found.words, "Traceback" in found.words) == (
        1,
        True,
        False,
    )
    found = await run({**here.council.environment, "SILOGATE_SMTP_FROM": "nobody"}, "work")
    assert (found.code, "SILOGATE_SMTP_FROM: " in found.words, "Traceback" in found.words) == (2, True, False)


async def test_doctor_names_every_wrong_setting_of_the_folders(here: Town, tmp_path: Path) -> None:
    """A ring that opens nothing and a folder that cannot be made hide neither each other nor a missing recipient."""
    (tmp_path / "file").write_text("")
    wrong = {
        **here.council.environment,
        "SILOGATE_KEY_RING": "junk",
        "SILOGATE_BLOBS": str(tmp_path / "file" / "blobs"),
    }
    del wrong["SILOGATE_RECIPIENT_CONTRACTOR_URL"]
    found = await run(wrong, "doctor", "--json")
    assert found.code == 1
    problems = " ".join(json.loads(found.data)[0]["problems"])
    for name in ("SILOGATE_KEY_RING: ", "SILOGATE_BLOBS: ", "SILOGATE_RECIPIENT_CONTRACTOR_URL is not set"):
        assert name in problems, problems
    assert "junk" not in found.data + found.words


@pytest.mark.parametrize("command", ["serve", "work", "doctor"])
async def test_wrong_settings_are_named_and_nothing_starts(command: str) -> None:
    """A process that cannot run says every wrong setting with its fix, prints no secret, and exits with 2."""
    found = await run({"SILOGATE_DATABASE_URL": "postgresql://silogate:hunter2@db/x", "SILOGATE_PROT": "1"}, command)
    assert found.code == 2
    assert "SILOGATE_PROT is not a setting; did you mean SILOGATE_PORT?" in found.words
    assert "SILOGATE_KEY_RING is not set" in found.words
    assert "hunter2" not in found.words + found.data


async def test_a_process_without_its_database_says_so(here: Town) -> None:
    """With PostgreSQL away, `serve` ends with a sentence and 1, not with a traceback or a password."""
    away = {**here.council.environment, "SILOGATE_DATABASE_URL": "postgresql://silogate:hunter2@127.0.0.1:1/silogate"}
    found = await run(away, "serve")
    assert found.code == 1
    assert "PostgreSQL cannot be used" in found.words
    assert "Traceback" not in found.words
    assert "hunter2" not in found.words + found.data


async def test_settings_lists_every_one() -> None:
    """`silogate settings --json` needs no configuration and names each setting with its meaning."""
    found = await run({}, "settings", "--json")
    assert found.code == 0
    names = {row["name"] for row in json.loads(found.data)}
    assert {"SILOGATE_DATABASE_URL", "SILOGATE_RECIPIENT_<NAME>_URL", "SILOGATE_PORT"} <= names
