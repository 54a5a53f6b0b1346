"""A load of a silo: rows, tags, rejects and the note that it is complete, all of one moment."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway.dev.addresses import Database
from streams.silos import SchemaDrift, SiloDeclaration, applier
from tests.silos import SILOS, TYPES, Bench, declared, pool_of, tagger_of, three_lamps


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with pool_of(gateway_database) as pool:
        yield pool


@pytest.fixture
async def bench(pool: asyncpg.Pool, tmp_path: Path) -> Bench:
    """Three lamps, loaded once."""
    return await three_lamps(pool, tmp_path)


async def test_changes_are_logged_with_the_tags_of_both_images(bench: Bench) -> None:
    """A lamp that moves touches the old postcode and the new one; what did not change touches nothing."""
    bench.write("1,BN59 1AA,", "2,BN59 2AA,Exampleson", "4,BN59 4AA,")
    summary = await bench.load()
    assert (summary.added, summary.changed, summary.removed, summary.unchanged) == (1, 1, 1, 1)
    assert await bench.image() == {1: ("BN59 1AA", None), 2: ("BN59 2AA", "Exampleson"), 4: ("BN59 4AA", None)}
    wanted = (
        bench.lamp_tags(2, "BN59 1AB", "BN59 2AA") | bench.lamp_tags(3, "BN59 1AB") | bench.lamp_tags(4, "BN59 4AA")
    )
    assert await bench.tags_after(summary.seq - 1) == wanted


async def test_progress_and_log_agree(bench: Bench) -> None:
    """Positions have no gap, `progress` names the newest entry, and the epoch stays while changes are listed."""
    before = (await bench.fetch("select * from progress"))[0]
    bench.write("1,BN59 1AG,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    await bench.load()
    after = (await bench.fetch("select * from progress"))[0]
    log = await bench.fetch("select seq, id from change_log order by seq")
    assert [row["seq"] for row in log] == list(range(len(log)))
    assert (after["seq"], after["id"]) == (log[-1]["seq"], log[-1]["id"])
    assert (after["epoch"], after["seq"]) == (before["epoch"], before["seq"] + 1)
    assert after["definition"] == bench.tagger.definition
    assert '"sha256"' in after["source_position"]


async def test_an_unchanged_load_says_that_it_is_complete_and_how_old_the_source_is(bench: Bench) -> None:
    """Nothing is logged for the cache, but the file's new age is recorded."""
    before = (await bench.fetch("select * from progress"))[0]
    os.utime(bench.folder / "lamps.csv", (1_700_000_000, 1_700_000_000))
    summary = await bench.load()
    assert summary.unchanged == 3
    assert (await bench.fetch("select * from progress"))[0] == before
    newest = (await bench.fetch("select * from load order by id desc limit 1"))[0]
    assert newest["completed"] is not None
    assert newest["source_time"] == summary.source_time == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)


async def test_a_file_from_the_future_is_not_fresh_for_ever(bench: Bench) -> None:
    """A time stamp ahead of the database's clock counts as now."""
    os.utime(bench.folder / "lamps.csv", (4_000_000_000, 4_000_000_000))
    assert (await bench.load()).source_time <= dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)


async def test_many_tags_are_split_and_too_many_are_an_epoch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No log row lists more than 500 tags; above the threshold a new epoch is minted and none is listed."""
    epoch = (await bench.load()).epoch
    bench.write(*(f"{n},BN59 1AA," for n in range(1, 1_202)))
    listed = await bench.load()
    sizes = await bench.fetch("select cardinality(tags) as size from change_log where seq > 1 order by seq")
    assert [row["size"] for row in sizes] == [500, 500, 203]
    assert listed.epoch == epoch
    monkeypatch.setattr(applier, "TAGS_A_LOAD", 1_000)
    bench.write(*(f"{n},BN59 1AB," for n in range(1, 1_202)))
    minted = await bench.load()
    assert minted.epoch != epoch
    assert minted.seq == listed.seq + 1
    assert await bench.tags_after(listed.seq) == set()


async def test_another_definition_mints_an_epoch(bench: Bench) -> None:
    """After a rotation of the tag key even an unchanged load gives the silo a new epoch, once."""
    before = await bench.load()
    rotated = tagger_of(bench.silo, b"n" * 32)
    after = await bench.load(tagger=rotated)
    assert after.epoch != before.epoch
    assert (await bench.load(tagger=rotated)).epoch == after.epoch


async def test_rejects_name_row_column_and_reason_and_mask_what_is_personal(bench: Bench) -> None:
    """A reader finds the row; nobody finds the person."""
    bench.write("1,nowhere,Exampleson", f"2,BN59 1AB,{'Long' * 99}", "x,BN59 1AG,", "3,BN59 1AB,")
    summary = await bench.load(allow_deletions=True)
    assert (summary.rejected, summary.total) == (3, 1)
    assert await bench.rejects() == [
        (2, "Postcode", "nowhere", "is not a full UK postcode such as BN15 9JB", set()),
        (3, "Keeper", "(personal, 396 characters)", "is longer than 256 characters", bench.lamp_tags(2, "BN59 1AB")),
        (4, "UPRN", "x", "is not a UPRN of up to 12 digits", set()),
    ]
    stored = await bench.fetch("select r::text as line from reject r")
    assert not any("Exampleson" in row["line"] or "LongLong" in row["line"] for row in stored)


async def test_rejects_of_the_newest_load_replace_those_before(bench: Bench) -> None:
    """A mended row is no longer in doubt: only the newest complete load's rejects count, and old ones are dropped."""
    bench.write("1,nowhere,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    assert (await bench.load()).rejected == 1
    bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    assert (await bench.load()).rejected == 0
    assert await bench.rejects() == []
    for _ in range(10):
        await bench.load()
    assert await bench.fetch("select 1 from reject") == []


async def test_a_load_that_only_puts_other_rows_in_doubt_moves_the_position(bench: Bench) -> None:
    """Answers of the position before it were judged by other rejects, so it gets a position of its own, once."""
    before = (await bench.fetch("select * from progress"))[0]
    bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,", "4,nowhere,")
    assert (await bench.load()).unchanged == 3
    doubted = (await bench.fetch("select * from progress"))[0]
    assert (doubted["epoch"], doubted["seq"]) == (before["epoch"], before["seq"] + 1)
    assert (await bench.fetch("select tags from change_log where seq = $1", doubted["seq"]))[0]["tags"] == []
    await bench.load()
    assert (await bench.fetch("select * from progress"))[0] == doubted
    bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    await bench.load()
    assert (await bench.fetch("select seq from progress"))[0]["seq"] == doubted["seq"] + 1


async def test_all_rows_of_a_key_that_is_there_twice_are_refused(bench: Bench) -> None:
    """Nobody knows which row is right, whether they differ or not, and also when one has other mistakes."""
    bench.write("1,BN59 1AA,", "1,BN59 9ZZ,", "2,BN59 1AB,", "2,nowhere,", "3,BN59 1AB,")
    summary = await bench.load(allow_deletions=True)
    assert await bench.image() == {3: ("BN59 1AB", None)}
    assert summary.rejected == 4
    twice = [(row, reason, tags) for row, _, _, reason, tags in await bench.rejects() if "key" in reason]
    assert twice == [
        (2, "is the key of 2 rows: 2, 3", bench.lamp_tags(1, "BN59 1AA")),
        (3, "is the key of 2 rows: 2, 3", bench.lamp_tags(1, "BN59 9ZZ")),
        (4, "is the key of 2 rows: 4, 5", bench.lamp_tags(2, "BN59 1AB")),
        (5, "is the key of 2 rows: 4, 5", bench.lamp_tags(2)),
    ]


async def test_any_sequence_of_edits_ends_with_replica_as_source(bench: Bench) -> None:
    """After each of many random loads the replica is the good part of the source, and no change went unlogged."""
    rng = random.Random(20261122)
    lamps: dict[int, tuple[str, str | None]] = await bench.image()
    seq = (await bench.fetch("select seq from progress"))[0]["seq"]
    for _ in range(12):
        before = dict(lamps)
        for uprn in rng.sample(range(1, 30), 8):
            if uprn in lamps and rng.random() < 0.3:
                del lamps[uprn]
            else:
                lamps[uprn] = (f"BN59 1A{rng.choice('ABDEFG')}", rng.choice((None, "Exampleson", 'O\'Fictional, "Q"')))
        rows = [
            f'{uprn},{postcode},"{(keeper or "").replace(chr(34), chr(34) * 2)}"'
            for uprn, (postcode, keeper) in lamps.items()
        ]
        bench.write(*rng.sample(rows, len(rows)), "99,nowhere,")
        summary = await bench.load(allow_deletions=True)
        assert await bench.image() == lamps
        wanted: set[str] = set()
        for uprn in before.keys() | lamps.keys():
            if before.get(uprn) != lamps.get(uprn):
                images = [image[0] for image in (before.get(uprn), lamps.get(uprn)) if image is not None]
                wanted |= bench.lamp_tags(uprn, *images)
        assert await bench.tags_after(seq) == wanted
        seq = summary.seq


async def test_a_dry_run_says_what_would_happen_and_does_none_of_it(bench: Bench) -> None:
    """Counts and report are those of the load; the database is as before, even on a first run."""
    everything = "select (select json_agg(l) from lamp l)::text, (select json_agg(p) from progress p)::text, "
    everything += (
        "(select json_agg(l) from load l)::text, (select count(*) from change_log), (select count(*) from reject)"
    )
    before = await bench.fetch(everything)
    bench.write("1,nowhere,", "2,BN59 1AB,Exampleson", "3,BN59 1AG,")
    summary = await bench.load(dry_run=True, reports=bench.folder)
    assert (summary.changed, summary.removed, summary.rejected, summary.dry_run) == (1, 1, 1, True)
    assert summary.rejects_csv == bench.folder / "lamps-rejects-dry-run.csv"
    assert "nowhere" in summary.rejects_csv.read_text(encoding="utf-8-sig")
    assert await bench.fetch(everything) == before
    other = Bench(bench.pool, SILOS / "assets", declared("assets"))
    assert (await other.load(dry_run=True)).added == 13
    assert not await bench.pool.fetchval("select true from pg_namespace where nspname = 'silo_assets'")


TWO_TABLES = """\
silo: parks
title: Parks
owner: Parks
max_age: 36h
source: {kind: csv, path: parks.csv}
tables:
  park:
    key: [park_id]
    columns: {park_id: {from: Id, type: reference}, name: {from: Name, type: text}}
  lamp:
    path: park-lamps.csv
    key: [park_id, number]
    columns: {park_id: {from: Park, type: reference}, number: {from: Number, type: integer}}
    indexes: {park: {columns: [park_id], kind: value}}
"""


async def test_tables_of_one_silo_change_together(bench: Bench, tmp_path: Path) -> None:
    """Two files are one image: if one cannot be used, neither table changes, nor does another silo's of that name."""
    parks = Bench(bench.pool, tmp_path, SiloDeclaration.parse(TWO_TABLES, Path("silo.yaml"), TYPES))
    (tmp_path / "parks.csv").write_text("Id,Name\nP1,Monks Recreation Ground\n")
    (tmp_path / "park-lamps.csv").write_text("Park,Number\nP1,1\nP1,2\n")
    os.utime(tmp_path / "park-lamps.csv", (1_700_000_000, 1_700_000_000))
    summary = await parks.load()
    assert (summary.added, summary.source_time.year) == (3, 2023)
    assert (await bench.load()).unchanged == 3
    (tmp_path / "parks.csv").write_text("Id,Name\nP1,Buckingham Park\n")
    (tmp_path / "park-lamps.csv").write_text("Park,Lamp\nP1,1\n")
    with pytest.raises(SchemaDrift):
        await parks.load()
    assert (await parks.fetch("select name from park"))[0]["name"] == "Monks Recreation Ground"
    (tmp_path / "park-lamps.csv").write_text("Park,Number\nP1,1\nP1,2\nP1,3\n")
    changed = await parks.load()
    assert (changed.added, changed.changed, changed.unchanged) == (1, 1, 2)
    tagger = parks.tagger
    assert await parks.tags_after(summary.seq) == {
        tagger.table_tag("park"),
        tagger.table_tag("lamp"),
        tagger.value_tag("lamp", "park", ["P1"]),
    }


async def test_a_flood_of_rejects_is_reported_to_the_last_line(bench: Bench, tmp_path: Path) -> None:
    """More refused rows than fit one batch: table and report have a line for each, and the good rows are loaded."""
    twice = [f"{uprn},BN59 1A{letter}," for uprn in range(10, 1_300) for letter in "AB"]
    bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,", *twice, *["x,nowhere,"] * 2_100)
    summary = await bench.load(reports=tmp_path)
    assert (summary.unchanged, summary.rejected) == (3, 2 * 1_290 + 2_100)
    lines = 2 * 1_290 + 2 * 2_100
    assert len(await bench.rejects()) == lines
    assert summary.rejects_csv is not None
    assert len(summary.rejects_csv.read_text(encoding="utf-8-sig").splitlines()) == lines + 1
