"""Which server answers, and whether what it answers is new enough."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from cache.answer import AsOf
from cache.definition import IndexTag, LookupDefinition
from cache.group import Group
from cache.loader import Batch, Loaded, Question
from cache.metrics import CacheMetrics
from cache.seal import KeyRing
from cache.server import Poisoned, Server
from cache.silo import Silo
from cache.state import Position
from cache.store import Store
from cache.values import VALUE_TYPES, Index, Tagger

TAGGER = Tagger("town", {"address": (Index("uprn", ("uprn",), "value", ("uprn",)),)}, b"t" * 32, "1")
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
SLOW = "57014"


def position(seq: int) -> Position:
    return Position("e1", seq, f"id{seq}", TAGGER.definition)


def town() -> Silo:
    return Silo(
        "town",
        "postgresql://primary/x",
        ["postgresql://replica/x"],
        TAGGER,
        CacheMetrics(CollectorRegistry()),
        max_age_s=None,
        rejects_tolerated=False,
    )


async def test_a_question_that_is_slow_at_one_server_is_asked_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, it may be the server that is slow; among others it may be the question, which is then asked alone."""
    silo = town()

    async def ask(server: Server, _sql: str, _arguments: Sequence[Any]) -> Batch:
        if "replica" in server.label:
            raise Poisoned(SLOW)
        return Batch([], position(1), from_primary=True)

    monkeypatch.setattr(silo, "_ask", ask)
    assert (await silo.fetch_batch("select", [[1]])).from_primary
    with pytest.raises(Poisoned):
        await silo.fetch_batch("select", [[1, 2]])


async def test_a_question_slow_everywhere_is_poisonous(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no server answers it in time, it is the question."""
    silo = town()

    async def ask(_server: Server, _sql: str, _arguments: Sequence[Any]) -> Batch:
        raise Poisoned(SLOW)

    monkeypatch.setattr(silo, "_ask", ask)
    with pytest.raises(Poisoned):
        await silo.fetch_batch("select", [[1]])


async def test_a_primary_query_begun_before_the_change_is_not_the_answer() -> None:
    """Who knows of a change is not served from a query of another caller that had begun before it."""
    snapshots = [5, 6]

    async def load(_lookup: object, _question: Question, **_options: object) -> Loaded:
        return Loaded(b"[]", position(snapshots.pop(0)), NOW, NOW, from_primary=True)

    silo = SimpleNamespace(name="town", tagger=TAGGER, loader=SimpleNamespace(load=load))
    definition = LookupDefinition(
        name="address-by-uprn",
        silo="town",
        parameters={"uprn": VALUE_TYPES["uprn"]},
        sql="select uprn from address where uprn = :uprn",
        shape="one",
        columns=("uprn",),
        tags={"address": IndexTag("uprn", ("uprn",))},
        ttl_s=60,
        soft_ttl_s=30,
        negative_ttl_s=5,
        stale_for_s=0,
        max_age_s=None,
        personal=False,
    )
    metrics = CacheMetrics(CollectorRegistry())
    group = Group(definition, cast("Silo", silo), cast("Store", None), KeyRing({1: b"k" * 32}, 1), metrics)
    deadline = asyncio.get_running_loop().time() + 5
    found = await group._load(Question("0" * 32, (1,), ()), None, None, AsOf("town", "e1", 6), deadline)
    assert found.seq == 6
    assert snapshots == []
