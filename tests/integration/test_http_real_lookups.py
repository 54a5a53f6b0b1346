"""The whole way of a lookup: the council's own CSV, loaded, asked through Redis; edited, loaded, asked again."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from prometheus_client import CollectorRegistry

from cache.cases import CasesReader, UncachedLookup
from cache.coherence import Invalidator
from cache.group import Group
from cache.joined import JoinedLookup
from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.seal import KeyRing
from cache.silo import Silo
from cache.store import Store
from cache.values import Tagger
from gateway.context import Asker
from gateway.declarations import LookupDeclaration
from gateway.dev.addresses import Database
from gateway.integrations import Folders, read_folders, tagger_of, value_types
from streams.silos.load import load
from streams.silos.schema import prepare
from tests.integration.edge import Edge, problem_of, running_edge

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_UPRN = "60002210"


class _World:
    """The silo `assets` with everything that answers from it."""

    def __init__(self, database: Database, redis_url: str, folder: Path) -> None:
        self.folders: Folders = read_folders(_DEPLOY / "integrations", _DEPLOY / "silos")
        assert self.folders.problems == []
        ring = KeyRing({1: os.urandom(32)}, 1)
        self.declaration = self.folders.silos["assets"]
        self.tagger: Tagger = tagger_of(self.declaration, ring.hmac_key, ring.hmac_key_id)
        self.registry = CollectorRegistry()
        metrics = CacheMetrics(self.registry)
        self.link = RedisLink(redis_url, metrics)
        self.store = Store("assets", self.tagger.definition, self.link, metrics)
        self.silo = Silo(
            "assets", database.url, [database.replica_url], self.tagger, metrics,
            max_age_s=self.declaration.max_age_s, rejects_tolerated=self.declaration.rejects_tolerated,
        )  # fmt: skip
        self.invalidator = Invalidator("assets", database.url, self.store, metrics)
        self.metrics, self.ring, self.files = metrics, ring, folder
        shutil.copy(_DEPLOY / "silos" / "assets" / "assets.csv", folder / "assets.csv")

    def answering(self, cases: CasesReader) -> dict[str, tuple[LookupDeclaration, Asker]]:
        found: dict[str, tuple[LookupDeclaration, Asker]] = {}
        for declared in self.folders.integrations[0].lookups:
            if declared.over_cases:
                found[declared.name] = declared, UncachedLookup(declared.definition, cases, self.metrics)
            elif declared.definition.silo == "assets":
                group = Group(declared.definition, self.silo, self.store, self.ring, self.metrics)
                found[declared.name] = declared, group
                if declared.cases is not None:
                    joined = JoinedLookup(group, UncachedLookup(declared.cases, cases, self.metrics))
                    found[declared.name] = declared, joined
        return found

    def loads(self) -> float:
        """How often the silo was asked."""
        return self.registry.get_sample_value("silogate_silo_load_keys_count", {"silo": "assets"}) or 0.0

    def kept(self) -> float:
        """How many answers Redis took."""
        kept = {"silo": "assets", "outcome": "stored"}
        return self.registry.get_sample_value("silogate_cache_fills_total", kept) or 0.0

    def hits(self) -> float:
        """How many answers of the lookup came out of Redis."""
        hit = {"lookup": "asset-by-uprn", "source": "hit", "verdict": "found"}
        return self.registry.get_sample_value("silogate_lookup_answers_total", hit) or 0.0

    async def load(self, pool: asyncpg.Pool) -> None:
        await load(self.declaration, types=value_types(), pool=pool, tagger=self.tagger, folder=self.files)


@asynccontextmanager
async def _served(database: Database, redis_url: str, folder: Path) -> AsyncIterator[tuple[Edge, _World, asyncpg.Pool]]:
    world = _World(database, redis_url, folder)
    async with asyncpg.create_pool(
        database.url, min_size=1, max_size=4, server_settings={"search_path": "gateway"}
    ) as pool:
        async with pool.acquire() as connection:
            await prepare(connection, world.declaration, value_types())
        cases = CasesReader(pool)
        parts = (world.store, world.silo, world.invalidator, cases)
        running = [asyncio.create_task(part.run()) for part in parts]
        try:
            async with running_edge(database.url, folder, answering=world.answering(cases)) as edge:
                yield edge, world, pool
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await world.link.close()


async def _ask(edge: Edge) -> tuple[dict[str, Any], str, str]:
    answer = await edge.ask("GET", "/v1/lookups/asset-by-uprn", params={"uprn": _UPRN})
    assert answer.status == 200, await answer.text()
    return await answer.json(), answer.headers["Cache-Status"], answer.headers["ETag"]


async def _until_hit(edge: Edge) -> tuple[dict[str, Any], str]:
    async with asyncio.timeout(20):
        while True:
            body, status, etag = await _ask(edge)
            if status == "Silogate; hit":
                return body, etag
            await asyncio.sleep(0.05)


async def test_an_edited_csv_is_the_new_answer_after_its_load(
    gateway_database: Database, redis_url: str, tmp_path: Path
) -> None:
    """Before the first load nothing is claimed; then answers come from Redis; after an edit and a load, the new one."""
    async with _served(gateway_database, redis_url, tmp_path) as (edge, world, pool):
        body, _, _ = await _ask(edge)
        assert body["verdict"] == "cannot_tell"

        await world.load(pool)
        async with asyncio.timeout(20):
            while (await _ask(edge))[0]["verdict"] != "found":
                await asyncio.sleep(0.05)
        before, etag = await _until_hit(edge)
        assert before["results"][0]["opening_hours"] == "S = 09:00 - 15:00 W = 09:00 - 15:00"
        not_modified = await edge.ask(
            "GET", "/v1/lookups/asset-by-uprn", params={"uprn": _UPRN}, headers={"If-None-Match": etag}
        )
        assert not_modified.status == 304

        source = tmp_path / "assets.csv"
        text = source.read_text(encoding="utf-8")
        source.write_text(text.replace("S = 09:00 - 15:00 W = 09:00 - 15:00", "Closed for repair"), encoding="utf-8")
        await world.load(pool)
        async with asyncio.timeout(20):
            while (after := await _ask(edge))[0]["results"][0]["opening_hours"] != "Closed for repair":
                await asyncio.sleep(0.02)
        assert after[2] != etag
        assert int(after[0]["as_of"]["token"].rsplit(":", 1)[1]) > int(before["as_of"]["token"].rsplit(":", 1)[1])
        body, _ = await _until_hit(edge)
        assert body["results"][0]["opening_hours"] == "Closed for repair"


async def test_a_token_of_an_earlier_answer_holds_and_cases_are_seen_at_once(
    gateway_database: Database, redis_url: str, tmp_path: Path
) -> None:
    """Silogate-Min-As-Of by HTTP, and the duplicate check right after a case was made by anyone."""
    async with _served(gateway_database, redis_url, tmp_path) as (edge, world, pool):
        await world.load(pool)
        async with asyncio.timeout(20):
            while (found := await _ask(edge))[0]["verdict"] != "found":
                await asyncio.sleep(0.05)
        token = found[0]["as_of"]["token"]
        answer = await edge.ask(
            "GET", "/v1/lookups/asset-by-uprn", params={"uprn": _UPRN}, headers={"Silogate-Min-As-Of": token}
        )
        assert (await answer.json())["verdict"] == "found"
        assert int((await answer.json())["as_of"]["token"].rsplit(":", 1)[1]) >= int(token.rsplit(":", 1)[1])

        reported = "/v1/lookups/asset-already-reported"
        nothing = await (await edge.ask("GET", reported, params={"uprn": _UPRN})).json()
        assert (nothing["verdict"], nothing["results"]) == ("not_found", [])
        receipt = await edge.create()
        answer = await edge.ask("GET", reported, params={"uprn": _UPRN}, key="lookups")
        now = await answer.json()
        assert [item["reference"] for item in now["results"]] == [receipt["reference"]]
        assert answer.headers["Cache-Status"] == "Silogate; fwd=bypass"
        assert answer.headers["Cache-Control"] == "no-store"
        wrong = await edge.ask("GET", reported, params={"uprn": "-1"})
        assert await problem_of(wrong) == (400, "malformed_uprn", "uprn")


async def test_a_joined_lookup_sees_the_silo_and_a_case_that_was_just_made(
    gateway_database: Database, redis_url: str, tmp_path: Path
) -> None:
    """The silo's row comes out of the cache, the report that anybody made a moment ago stands before it."""
    async with _served(gateway_database, redis_url, tmp_path) as (edge, world, pool):
        await world.load(pool)
        await _until_hit(edge)
        path = "/v1/lookups/asset-with-reports"
        before = await (await edge.ask("GET", path, params={"uprn": _UPRN})).json()
        receipt = await edge.create()
        answer = await edge.ask("GET", path, params={"uprn": f"000{_UPRN}"}, key="lookups")
        after = await answer.json()
        assert [row["kind"] for row in before["results"]] == ["asset"]
        assert [(row["kind"], row["reference"]) for row in after["results"]] == [
            ("report", receipt["reference"]),
            ("asset", None),
        ]
        assert after["results"][1] == before["results"][0]
        assert answer.headers["Cache-Control"] == "no-store"
        assert after["as_of"]["token"].startswith("assets:")


async def test_questions_of_one_request_go_to_the_silo_together(
    gateway_database: Database, redis_url: str, tmp_path: Path
) -> None:
    """Three cold keys of one lookup are one query, and a second request, once Redis has them, finds them there."""
    async with _served(gateway_database, redis_url, tmp_path) as (edge, world, pool):
        await world.load(pool)
        await _until_hit(edge)
        others = "select uprn from silo_assets.toilet where uprn <> $1 order by uprn limit 3"
        uprns = [row["uprn"] for row in await pool.fetch(others, int(_UPRN))]
        questions = [{"lookup": "asset-by-uprn", "parameters": {"uprn": uprn}} for uprn in uprns]
        questions.append({"lookup": "asset-already-reported", "parameters": {"uprn": _UPRN}})
        loads, kept = world.loads(), world.kept()
        answer = await edge.ask("POST", "/v1/lookups:batch", json={"lookups": questions})
        answers = (await answer.json())["answers"]
        assert [one["answer"]["verdict"] for one in answers] == ["found", "found", "found", "not_found"]
        assert [one["answer"]["results"][0]["uprn"] for one in answers[:3]] == [str(uprn) for uprn in uprns]
        assert world.loads() == loads + 1

        async with asyncio.timeout(20):
            while world.kept() < kept + 3:
                await asyncio.sleep(0.02)
        hits = world.hits()
        again = await edge.ask("POST", "/v1/lookups:batch", json={"lookups": questions})
        results = [one["answer"]["results"] for one in (await again.json())["answers"]]
        assert results == [one["answer"]["results"] for one in answers]
        assert (world.hits(), world.loads()) == (hits + 3, loads + 1)
