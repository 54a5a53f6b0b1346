"""A small silo for tests: its declaration, its source file, and what a load left in the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from cache.values import VALUE_TYPES, Index, Tagger
from gateway.dev.addresses import Database
from streams.silos import LoadSummary, SiloDeclaration, ValueTypes, load

SILOS = Path(__file__).resolve().parents[1] / "deploy" / "silos"
TYPES = ValueTypes(
    {name: kind.normalise for name, kind in VALUE_TYPES.items()},
    {name: kind.postgres_type for name, kind in VALUE_TYPES.items()},
)
LAMPS = """\
silo: lamps
title: Street lamps
owner: Highways
max_age: 36h
source: {kind: csv, path: lamps.csv}
deletions: {guard_percent: 50}
tables:
  lamp:
    key: [uprn]
    personal: [keeper]
    columns:
      uprn: {from: UPRN, type: uprn}
      postcode: {from: Postcode, type: postcode, required: true}
      keeper: {from: Keeper, type: text}
    indexes:
      uprn: {columns: [uprn], kind: value}
      postcode: {columns: [postcode], kind: value}
"""


def declared(name: str) -> SiloDeclaration:
    path = SILOS / name / "silo.yaml"
    return SiloDeclaration.parse(path.read_text(encoding="utf-8"), path, TYPES)


def tagger_of(silo: SiloDeclaration, key: bytes = b"k" * 32) -> Tagger:
    tables = {
        table: [Index(index.name, index.columns, index.kind, index.types) for index in indexes]
        for table, indexes in silo.indexes().items()
    }
    return Tagger(silo.silo, tables, key, key[:1].hex())


@asynccontextmanager
async def pool_of(database: Database) -> AsyncIterator[asyncpg.Pool]:
    """A pool as the gateway makes it: its search path is not the silo's."""
    settings = {"search_path": "gateway"}
    async with asyncpg.create_pool(database.url, min_size=0, max_size=4, server_settings=settings) as pool:
        yield pool


@dataclass
class Bench:
    """A silo of street lamps, its source file, and what a load left in the database."""

    pool: asyncpg.Pool
    folder: Path
    silo: SiloDeclaration = field(default_factory=lambda: SiloDeclaration.parse(LAMPS, Path("silo.yaml"), TYPES))

    @property
    def tagger(self) -> Tagger:
        return tagger_of(self.silo)

    def write(self, *rows: str) -> None:
        (self.folder / "lamps.csv").write_text("\n".join(("UPRN,Postcode,Keeper", *rows, "")), encoding="utf-8")

    async def load(self, **options: Any) -> LoadSummary:
        options = {"tagger": self.tagger, **options}
        return await load(self.silo, types=TYPES, pool=self.pool, folder=self.folder, **options)

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(f"set local search_path = {self.silo.schema_name}")
            return list(await connection.fetch(query, *arguments))

    async def image(self) -> dict[int, tuple[str, str | None]]:
        rows = await self.fetch("select uprn, postcode, keeper from lamp")
        return {row["uprn"]: (row["postcode"], row["keeper"]) for row in rows}

    async def tags_after(self, seq: int) -> set[str]:
        rows = await self.fetch("select unnest(tags) as tag from change_log where seq > $1", seq)
        return {row["tag"] for row in rows}

    async def rejects(self) -> list[tuple[int, str, str, str, set[str]]]:
        rows = await self.fetch("select * from reject where load_id = (select max(id) from load) order by row_number")
        keys = ("row_number", "column_name", "value_shown", "reason")
        return [(*(row[key] for key in keys), set(row["tags"])) for row in rows]

    def lamp_tags(self, uprn: int, *postcodes: str) -> set[str]:
        tagger = self.tagger
        postcode_tags = {tagger.value_tag("lamp", "postcode", [postcode]) for postcode in postcodes}
        return {tagger.table_tag("lamp"), tagger.value_tag("lamp", "uprn", [uprn])} | postcode_tags


async def three_lamps(pool: asyncpg.Pool, folder: Path) -> Bench:
    """A silo of three lamps, loaded once."""
    bench = Bench(pool, folder)
    bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    await bench.load()
    return bench
