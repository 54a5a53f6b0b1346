"""Not found is said only where the silo is complete, young enough and in no doubt about the row."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

import cache.silo
from cache.state import State
from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, BY_UPRN, CONTAINING, NEAR, SCHEMA, World, address, rows, until

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"
A_DAY = dt.timedelta(days=1)


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url, max_age_s=36 * 3600)
    yield made
    await made.stop()


async def test_before_the_first_complete_load_nobody_can_tell(world: World) -> None:
    """A silo that was never loaded whole says so, for a key it has and for one it has not; then it can tell at once."""
    await world.prepare(complete=False)
    world.start()
    await world.settled()
    answer = await world.ask(BY_POSTCODE, ELM)
    assert (answer.verdict, answer.reason) == ("cannot_tell", "not_loaded")
    await world.put("address", address(1, CRABTREE, "One"))
    assert (await world.ask(BY_POSTCODE, CRABTREE)).verdict == "cannot_tell"
    await world.load()
    await world.settled()
    assert (await world.ask(BY_POSTCODE, ELM)).verdict == "not_found"
    assert (await world.ask(BY_POSTCODE, CRABTREE)).verdict == "found"


async def test_a_silo_without_tables_cannot_tell(world: World) -> None:
    """A silo that is declared and not yet made is incomplete, not an error; it answers as soon as it is loaded."""
    async with world.connect() as connection:
        await connection.execute("do $$ begin create role silogate_lookup; exception when others then null; end $$")
    world.start()
    answer = await world.ask(BY_POSTCODE, CRABTREE)
    assert (answer.verdict, answer.results, answer.reason) == ("cannot_tell", b"[]", "not_loaded")
    await world.prepare()

    async def can_tell() -> bool:
        return (await world.ask(BY_POSTCODE, CRABTREE)).verdict == "not_found"

    await until(can_tell)


async def test_past_its_max_age_a_silo_cannot_tell(world: World) -> None:
    """The age of the source counts, not that of the load, and a new load of a young source mends it."""
    await world.prepare(complete=False)
    world.start()
    await world.put("address", address(1, CRABTREE, "One"))
    await world.load(source_time=dt.datetime.now(dt.UTC) - 2 * A_DAY)
    await world.settled()
    absent, there = await world.ask(BY_POSTCODE, ELM), await world.ask(BY_POSTCODE, CRABTREE)
    assert (absent.verdict, absent.reason) == ("cannot_tell", "too_old")
    assert (there.verdict, there.reason, len(rows(there))) == ("cannot_tell", "too_old", 1)
    patient = replace(BY_POSTCODE, name="patient", max_age_s=90 * 3600)
    assert (await world.ask(patient, ELM)).verdict == "not_found"
    await world.load(source_time=dt.datetime.now(dt.UTC) - A_DAY)
    await world.settled()

    async def young() -> bool:
        return (await world.ask(BY_POSTCODE, ELM)).verdict == "not_found"

    await until(young)


async def test_a_rejected_row_puts_only_its_own_values_in_doubt(world: World) -> None:
    """Where its index values could be read, absent answers about them are in doubt; found stands, others too."""
    await world.prepare()
    world.start()
    await world.put("address", address(1, CRABTREE, "One"))
    await world.settled()
    assert (await world.stored(BY_POSTCODE, ELM)).verdict == "not_found"
    rejected = address(2, ELM, "Elm House")
    await world.load(rejects=[("address", sorted(world.tagger.row_tags("address", rejected)))])
    await world.settled()
    doubtful = await world.ask(BY_POSTCODE, ELM)
    assert (doubtful.verdict, doubtful.reason) == ("cannot_tell", "doubtful")
    assert (await world.ask(BY_UPRN, 2)).verdict == "cannot_tell"
    assert (await world.ask(NEAR, 518000, 104000, 50)).verdict == "found"
    assert (await world.ask(BY_POSTCODE, CRABTREE)).verdict == "found"
    assert (await world.ask(BY_POSTCODE, "BN11 1AA")).verdict == "not_found"
    # What hangs on the whole table hangs on the missing row as well.
    assert (await world.ask(CONTAINING, "Nothing like it")).verdict == "cannot_tell"


async def test_a_rejected_row_that_cannot_be_read_puts_its_table_in_doubt(world: World) -> None:
    """It may have held any key of the table."""
    await world.prepare()
    world.start()
    await world.put("address", address(1, CRABTREE, "One"))
    await world.load(rejects=[("address", [])])
    await world.settled()
    assert (await world.ask(BY_POSTCODE, ELM)).reason == "doubtful"
    assert (await world.ask(BY_POSTCODE, CRABTREE)).verdict == "found"
    await world.load()
    await world.settled()
    assert (await world.ask(BY_POSTCODE, ELM)).verdict == "not_found"


async def test_a_silo_that_tolerates_rejects_has_no_doubts(database: Database, redis_url: str) -> None:
    """Declared so, a rejected row is as if it were not there."""
    world = World(database, redis_url, rejects_tolerated=True)
    try:
        await world.prepare()
        await world.load(rejects=[("address", [])])
        world.start()
        await world.settled()
        assert (await world.ask(BY_POSTCODE, ELM)).verdict == "not_found"
    finally:
        await world.stop()


async def test_rejects_tagged_under_another_definition_put_their_tables_in_doubt(world: World) -> None:
    """Tags that this process would not recognise may stand for any key."""
    await world.prepare()
    await world.load(rejects=[("address", ["ab" * 16])])
    async with world.connect() as connection:
        await connection.execute("update progress set definition = 'older'")
    world.start()
    await world.settled()
    assert (await world.ask(BY_POSTCODE, ELM)).reason == "doubtful"


async def test_a_load_that_came_and_went_between_two_looks_leaves_a_doubt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer out of it may lack what it rejected, and nobody here has seen what that was."""
    monkeypatch.setattr(cache.silo, "_LOOK_EVERY_S", 60.0)
    world.silo.max_age_s = None
    await world.prepare()
    world.start()
    first = await world.settled()
    assert await world.silo.judge(**_absent(first)) == ("not_found", None)
    await world.load(rejects=[("address", sorted(world.tagger.row_tags("address", address(2, ELM, "Elm House"))))])
    between = await world.settled()
    async with world.connect() as connection:
        await connection.execute("insert into load (started) values (now())")
    await world.load()
    assert await world.silo.judge(**_absent(between)) == ("cannot_tell", "unknown")
    seen = await world.settled()
    assert await world.silo.judge(**_absent(seen)) == ("not_found", None)
    await world.load()
    assert await world.silo.judge(**_absent(await world.settled())) == ("not_found", None)
    assert await world.silo.judge(**_absent(seen)) == ("not_found", None)


def _absent(state: State) -> dict[str, Any]:
    """What a verdict is asked for: nothing was found at that position."""
    deadline = asyncio.get_running_loop().time() + 5
    where: dict[str, Any] = {"epoch": state.epoch, "seq": state.seq, "tags": [], "tables": ["address"]}
    return where | {"negative": True, "max_age_s": None, "deadline": deadline}


async def test_found_and_not_found_of_the_same_rows_have_other_etags(world: World) -> None:
    """The ETag covers the verdict: a client that holds `not found` must not keep it when nobody can tell."""
    await world.prepare()
    world.start()
    await world.settled()
    sure = await world.ask(BY_POSTCODE, ELM)
    await world.load(rejects=[("address", [])])
    await world.settled()
    unsure = await world.ask(BY_POSTCODE, ELM)
    assert sure.results == unsure.results
    assert sure.etag != unsure.etag
    assert sure.etag.startswith('W/"')


async def test_a_reader_s_role_can_only_read(world: World) -> None:
    """Lookups run as a role that cannot write, in sessions that are read-only besides."""
    await world.prepare()
    world.start()
    await world.settled()
    async with world.connect() as connection:
        await connection.execute(
            f"create function {SCHEMA}.sneaky(text) returns text language plpgsql as "
            "$$ begin insert into claim values ('X', $1, 'open', 'x'); return $1; end $$"
        )
    writing = replace(BY_POSTCODE, name="writing", sql="select sneaky(:postcode) as uprn, '' as address")
    with pytest.raises(Exception, match=r"25006|42501"):
        await world.ask(writing, CRABTREE)
    async with world.connect() as connection:
        assert await connection.fetchval("select count(*) from claim") == 0
