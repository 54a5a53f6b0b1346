"""`silogate check --database` as the author of a lookup uses it: what is wrong, in which line, and how to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache.examine.examine import Examined
from gateway.commands.check import check_folders
from gateway.declarations import LookupDeclaration
from gateway.dev.addresses import Database, Servers
from gateway.dev.council import INTEGRATIONS, SILOS
from gateway.examining import TooSlow
from gateway.settings import read_settings
from tests.command_line import Printed, run
from tests.council import Town, town
from tests.integration.tcp_gate import Gate

LOOKUPS = Path("report-a-problem") / "lookups"


@pytest.fixture
async def here(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with town(servers, database, redis_url, topic_prefix, tmp_path) as made:
        yield made


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A copy of the shipped integrations, free to be broken."""
    shutil.copytree(INTEGRATIONS, tmp_path / "mine")
    return tmp_path / "mine"


async def check(here: Town, folders: Path, *more: str) -> Printed:
    return await run(here.council.environment, "check", str(folders), "--silos", str(SILOS), "--database", *more)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


async def test_what_is_shipped_is_sound_on_its_silos(here: Town) -> None:
    """Before a load it is said that nothing could be compared; after it every lookup is tried and nothing is wrong."""
    await here.start("work")
    empty = await check(here, INTEGRATIONS)
    assert empty.code == 0, empty.words
    assert "the silo assets is not loaded" in empty.words
    assert "the SQL was prepared but nothing could be compared; `silogate load assets`" in empty.words
    await here.council.load()
    found = await check(here, INTEGRATIONS)
    assert found.code == 0, found.words
    assert "no mistakes; tried on their silos: nothing wrong" in found.words, found.words
    assert "asset-by-uprn: reads toilet by toilet_pkey; asked in batches" in found.words
    assert "dropped by a change to a row of toilet with this uprn" in found.words
    assert "asset-already-reported: reads cases" in found.words
    listed = await check(here, INTEGRATIONS, "--json")
    rows = {row["name"]: row for row in json.loads(listed.data)["lookups"]}
    assert rows["known-details"]["tags"] == ["a change to a row of claim with this nino"]
    assert rows["known-details"]["sampled"] > 5
    assert all(row["batched"] and row["findings"] == [] for row in rows.values())


async def test_mistakes_are_named_by_file_and_line(here: Town, folders: Path) -> None:
    """An error fails the command, a warning does not; each names its file and line and says what to write."""
    await here.council.load(("assets", "addresses"))
    asset, postcode = folders / LOOKUPS / "asset-by-uprn.sql", folders / LOOKUPS / "addresses-by-postcode.sql"
    replace(postcode, "postcode = :postcode", "lower(postcode) = lower(:postcode)")
    found = await check(here, folders)
    assert found.code == 1
    assert f"error: {postcode.with_suffix('.yaml')}:9: tags: the tag of address promises" in found.words, found.words
    assert "tried on their silos: 1 error; " in found.words
    shutil.copy(INTEGRATIONS / LOOKUPS / postcode.name, postcode)
    replace(asset, "where uprn = :uprn", "where uprn = :uprn and extract_date <= current_date")
    replace(asset.with_suffix(".yaml"), "opening_hours]", "opening_ours]")
    found = await check(here, folders, "--json")
    assert found.code == 1
    (row,) = [row for row in json.loads(found.data)["lookups"] if row["name"] == "asset-by-uprn"]
    said = {one["code"]: (Path(one["file"]).name, one["line"], one["level"]) for one in row["findings"]}
    assert said == {
        "volatile": ("asset-by-uprn.sql", 3, "error"),
        "unknown_column": ("asset-by-uprn.yaml", 8, "error"),
    }
    shutil.copy(INTEGRATIONS / LOOKUPS / "asset-by-uprn.yaml", asset.with_suffix(".yaml"))
    asset.write_text("select uprn, name\nfrom toilets\nwhere uprn = :uprn")
    found = await check(here, folders)
    assert 'asset-by-uprn.sql:2: Postgres refuses the SQL: relation "toilets" does not exist' in found.words


async def test_tags_that_are_left_out_are_proposed(here: Town, folders: Path) -> None:
    """A lookup without tags is a mistake of its folder; the line to paste is derived from the plan."""
    await here.council.load(("assets",))
    path = folders / LOOKUPS / "asset-by-uprn.yaml"
    replace(path, "tags:\n  toilet: {index: uprn, from: [uprn]}\n", "")
    found = await check(here, folders)
    assert found.code == 1
    assert "does not say which changes touch its answers" in found.words
    assert "Add:  toilet: {index: uprn, from: [uprn]}" in found.words


async def test_a_database_that_is_away_is_said_without_its_password(here: Town) -> None:
    """The command fails in a sentence; settings that are missing are named."""
    away = {**here.council.environment, "SILOGATE_DATABASE_URL": "postgresql://silogate:hunter2@127.0.0.1:1/silogate"}
    away["SILOGATE_REPLICA_URLS"] = ""
    arguments = ("check", str(INTEGRATIONS), "--silos", str(SILOS), "--database")
    found = await run(away, *arguments)
    assert found.code == 1
    assert "cannot be asked" in found.words
    assert "hunter2" not in found.words
    assert "Traceback" not in found.words
    unset = await run({}, *arguments)
    assert (unset.code, "SILOGATE_DATABASE_URL is not set" in unset.words) == (2, True)


async def test_a_database_that_says_nothing_is_no_fault_of_the_sql(here: Town) -> None:
    """A time-out of connecting is told once, for the silo; no lookup is blamed for it."""
    gate = Gate(here.council.environment["SILOGATE_DATABASE_URL"])
    await gate.open()
    gate.hold()
    try:
        silent = {**here.council.environment, "SILOGATE_DATABASE_URL": gate.url, "SILOGATE_REPLICA_URLS": ""}
        found = await run(silent, "check", str(INTEGRATIONS), "--silos", str(SILOS), "--database")
    finally:
        await gate.shut()
    assert found.code == 1
    assert found.words.count("cannot be asked (TimeoutError)") == 1, found.words
    assert "could not be tried within its time" not in found.words


async def test_an_examination_that_does_not_end_is_the_lookups_own(
    here: Town, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is an error of that lookup, and the others are tried as well."""

    async def endless(_connection: object, declared: LookupDeclaration, *_rest: object) -> Examined:
        if declared.name == "asset-by-uprn":
            raise TooSlow
        return Examined()

    monkeypatch.setattr("gateway.commands.check.examine_lookup", endless)
    settings = read_settings(here.council.environment)
    assert await check_folders(INTEGRATIONS, SILOS, settings, json=True) == 1
    rows = json.loads(capsys.readouterr().out)["lookups"]
    said = {row["name"]: [finding["code"] for finding in row["findings"]] for row in rows}
    assert said.pop("asset-by-uprn") == ["too_slow"]
    assert len(said) > 5
    assert not any(said.values())
