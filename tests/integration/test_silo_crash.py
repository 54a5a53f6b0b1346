"""A load that goes wrong, or meets another, leaves the old image or the new one and nothing between."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway.dev.addresses import Database
from streams.outages import DATABASE_ERRORS
from streams.silos import (
    AnotherApplier,
    DeletionGuard,
    LoadProgress,
    LoadSummary,
    SchemaDrift,
    SourceUnreadable,
    TooSlow,
    applier,
)
from tests.silos import SILOS, Bench, pool_of, three_lamps


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with pool_of(gateway_database) as pool:
        yield pool


@pytest.fixture
async def bench(pool: asyncpg.Pool, tmp_path: Path) -> Bench:
    """Three lamps, loaded once."""
    return await three_lamps(pool, tmp_path)


async def test_deletions_are_guarded(bench: Bench) -> None:
    """A file cut to less than half, or to its headings, changes nothing until a person says that it is right."""
    image = await bench.image()
    for rows in (["1,BN59 1AA,"], []):
        bench.write(*rows)
        with pytest.raises(DeletionGuard, match="--allow-deletions"):
            await bench.load()
        assert await bench.image() == image
    bench.write("1,BN59 1AA,")
    assert (await bench.load(allow_deletions=True)).removed == 2
    bench.write()
    assert (await bench.load(allow_deletions=True)).total == 0


async def test_a_source_of_which_nothing_can_be_used_fails_closed(bench: Bench) -> None:
    """When every row is refused the source or silo.yaml is wrong, even if deletions are allowed."""
    image = await bench.image()
    bench.write("1,17 Mill Lane,", "2,Ham Road,")
    with pytest.raises(SchemaDrift, match="every one of 2 rows for lamp was refused: Postcode is not a full UK"):
        await bench.load(allow_deletions=True)
    assert await bench.image() == image


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, SourceUnreadable),
        ("", SourceUnreadable),
        ('UPRN,Postcode,Keeper\n1,"BN59 1AA,\n', SourceUnreadable),
        ("UPRN,Post code,Keeper\n1,BN59 1AA,\n", SchemaDrift),
        ("UPRN,Postcode,Keeper,Keeper\n1,BN59 1AA,,\n", SchemaDrift),
    ],
)
async def test_a_source_that_cannot_be_read_leaves_the_image(
    bench: Bench, content: str | None, error: type[Exception]
) -> None:
    """Missing, empty, cut short, renamed or doubled columns: a named error, and lookups go on with the old data."""
    path = bench.folder / "lamps.csv"
    path.unlink() if content is None else path.write_text(content)
    image, loads = await bench.image(), await bench.fetch("select * from load")
    with pytest.raises(error):
        await bench.load()
    assert await bench.image() == image
    assert await bench.fetch("select * from load") == loads


async def test_two_loads_at_once_are_one_load(bench: Bench) -> None:
    """Of loads started together one works and the others say so; whoever comes later finds the lock free."""
    bench.write("1,BN59 1AD,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    results = await asyncio.gather(*(bench.load() for _ in range(4)), return_exceptions=True)
    assert any(isinstance(result, LoadSummary) for result in results)
    assert all(isinstance(result, LoadSummary | AnotherApplier) for result in results)
    assert (await bench.image())[1] == ("BN59 1AD", None)
    assert (await bench.load()).unchanged == 3


async def test_an_epoch_minted_meanwhile_stands(bench: Bench) -> None:
    """An invalidator mints while a load runs: the load's changes go on under that epoch, and none is lost."""
    async with bench.pool.acquire() as connection:
        await connection.execute("set search_path = silo_lamps")
        seen = await applier.read_position(connection)
        await bench.fetch("update progress set epoch = 'minted'")
        after = await applier.advance(
            connection, seen, {"t"}, definition=seen.definition, source_position={}
        )  # fmt: skip
        assert (after.epoch, after.seq) == ("minted", seen.seq + 1)
        await connection.execute("reset search_path")
    assert [tuple(row) for row in await bench.fetch("select epoch, seq from progress")] == [("minted", seen.seq + 1)]


async def test_a_log_that_moved_meanwhile_stops_the_load(bench: Bench) -> None:
    """If another applier got past the lock, the one that comes second rolls back."""
    async with bench.pool.acquire() as connection:
        await connection.execute("set search_path = silo_lamps")
        seen = await applier.read_position(connection)
        for moved in (
            "update progress set seq = seq + 5",
            "insert into change_log select seq - 4, 'x', '{}' from progress",
        ):
            await bench.fetch(moved)
            with pytest.raises(AnotherApplier):
                async with connection.transaction():
                    await applier.advance(connection, seen, {"t"}, definition=seen.definition, source_position={})
        await connection.execute("reset search_path")


@pytest.mark.parametrize("phase", ["reading", "comparing", "applying"])
async def test_a_load_that_fails_anywhere_leaves_no_trace(bench: Bench, phase: str) -> None:
    """An error in any phase leaves the old image, no half a log, and a pool that can load again at once."""
    image, log = await bench.image(), await bench.fetch("select * from change_log")

    def break_off(progress: LoadProgress) -> None:
        if progress.phase == phase:
            raise RuntimeError(phase)

    bench.write("1,BN59 1AD,", "2,BN59 1AD,", "3,BN59 1AD,")
    with pytest.raises(RuntimeError, match=phase):
        await bench.load(on_progress=break_off)
    assert await bench.image() == image
    assert await bench.fetch("select * from change_log") == log
    assert (await bench.load()).changed == 3


async def test_a_load_past_its_deadline_is_given_up(bench: Bench) -> None:
    """A load that waits for ever for a lock is ended by its own deadline, and says so."""
    bench.write("1,BN59 1AD,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    async with bench.pool.acquire() as other, other.transaction():
        await other.execute("lock table silo_lamps.lamp in access exclusive mode")
        with pytest.raises(TooSlow, match="did not end within 1 s"):
            await bench.load(deadline_s=1.0)
    assert (await bench.load()).changed == 1


async def test_a_cut_connection_leaves_the_old_image(bench: Bench) -> None:
    """The database ends the session in the middle: nothing of the load is there, and the next one works."""
    image = await bench.image()
    bench.write("1,BN59 1AD,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    async with bench.pool.acquire() as other, other.transaction():
        await other.execute("lock table silo_lamps.lamp in access exclusive mode")
        loading = asyncio.create_task(bench.load())
        waiting = "not granted and relation = 'silo_lamps.lamp'::regclass"
        async with asyncio.timeout(10):
            while not await other.fetchval(f"select pg_terminate_backend(pid) from pg_locks where {waiting}"):
                await asyncio.sleep(0.01)
    with pytest.raises(DATABASE_ERRORS):
        await loading
    assert await bench.image() == image
    assert (await bench.load()).changed == 1


_LOADER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from tests.silos import Bench
from streams import failpoints

async def main(url, folder, point):
    async with asyncpg.create_pool(url, min_size=0, max_size=2) as pool:
        failpoints.arm(point + ":kill")
        await Bench(pool, Path(folder)).load()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("point", ["silo.staged", "silo.applied", "silo.before_commit", "silo.after_commit"])
async def test_a_loader_killed_anywhere_leaves_one_image_or_the_other(
    bench: Bench, gateway_database: Database, point: str
) -> None:
    """kill -9 of the loading process: the old image before the commit, the new one after, and never a part of it."""
    old = await bench.image()
    bench.write("1,BN59 1AD,", "2,BN59 1AD,", "4,BN59 1AD,")
    loader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LOADER, gateway_database.url, str(bench.folder), point, cwd=SILOS.parents[1],
    )  # fmt: skip
    async with asyncio.timeout(60):
        assert await loader.wait() == -signal.SIGKILL
    new: dict[int, tuple[str, str | None]] = dict.fromkeys((1, 2, 4), ("BN59 1AD", None))
    committed = point == "silo.after_commit"
    assert await bench.image() == (new if committed else old)
    assert len(await bench.fetch("select 1 from load")) == (2 if committed else 1)
    async with asyncio.timeout(10):
        while (again := await _load_when_free(bench)) is None:
            await asyncio.sleep(0.05)
    assert await bench.image() == new
    assert again.unchanged == (3 if committed else 0)


async def _load_when_free(bench: Bench) -> LoadSummary | None:
    # The server notices a dead client within moments, not at once; until then its lock stands.
    try:
        return await bench.load()
    except AnotherApplier:
        return None
