"""Which server answers, and whether what it answers is new enough."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

import cache.silo
from cache.answer import AsOf
from cache.definition import IndexTag, LookupDefinition
from cache.group import Group
from cache.loaded import Batch, Loaded
from cache.loader import Question
from cache.metrics import CacheMetrics
from cache.replicas import Replicas
from cache.seal import KeyRing
from cache.server import Poisoned, Server, ServerFailed
from cache.silo import Silo
from cache.state import Position
from cache.store import Store
from cache.unavailable import NobodyWaits
from cache.values import VALUE_TYPES, Index, Tagger

TAGGER = Tagger("town", {"address": (Index("uprn", ("uprn",), "value", ("uprn",)),)}, b"t" * 32, "1")
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
SLOW = "57014"


def position(seq: int) -> Position:
    return Position("e1", seq, f"id{seq}", TAGGER.definition)


def batch(seq: int, *, from_primary: bool, questions: int = 1) -> Batch:
    """Answers of none, all read at one position."""
    none = Loaded(b"[]", position(seq), NOW, NOW, from_primary=from_primary, sent=0.0)
    return Batch([(none, 0)] * questions)


def town(*, replicas: int | None = None) -> Silo:
    """A primary, and one `replica` unless there are to be so many, `replica0` and so on."""
    return Silo(
        "town",
        "postgresql://primary/x",
        ["postgresql://replica/x"] if replicas is None else [f"postgresql://replica{n}/x" for n in range(replicas)],
        TAGGER,
        CacheMetrics(CollectorRegistry()),
        max_age_s=None,
        rejects_tolerated=False,
    )


async def test_a_question_that_is_slow_at_one_server_is_asked_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, it may be the server that is slow; among others it may be the question, which is then asked alone."""
    silo = town()

    async def ask(server: Server, _lookup: object, _questions: Sequence[Any]) -> Batch:
        if "replica" in server.label:
            raise Poisoned(SLOW)
        return batch(1, from_primary=True)

    monkeypatch.setattr(silo, "_ask", ask)
    assert (await silo.fetch_batch(Lookup(), [(1,)])).from_primary
    with pytest.raises(Poisoned):
        await silo.fetch_batch(Lookup(), [(1,), (2,)])


async def test_a_question_slow_everywhere_is_poisonous(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no server answers it in time, it is the question."""
    silo = town()

    async def ask(_server: Server, _lookup: object, _questions: Sequence[Any]) -> Batch:
        raise Poisoned(SLOW)

    monkeypatch.setattr(silo, "_ask", ask)
    with pytest.raises(Poisoned):
        await silo.fetch_batch(Lookup(), [(1,)])


async def test_a_primary_query_begun_before_the_change_is_not_the_answer() -> None:
    """Who knows of a change is not served from a query of another caller that had begun before it."""
    snapshots = [5, 6]

    async def load(_lookup: object, _question: Question, **_options: object) -> Loaded:
        return Loaded(b"[]", position(snapshots.pop(0)), NOW, NOW, from_primary=True, sent=0.0)

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


class Pool:
    """A primary and replicas that are nowhere, and a clock that a test moves."""

    def __init__(self, replicas: int) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.primary = self._server("primary")
        self.replicas = [self._server(f"replica{n}") for n in range(replicas)]
        metrics = CacheMetrics(self.registry)
        self.servers = Replicas("town", self.primary, self.replicas, metrics, silent_s=0.5, clock=lambda: self.now)

    def _server(self, host: str) -> Server:
        return Server(
            f"postgresql://{host}/x", silo="town", schema="silo_town", role="r", statement_timeout_ms=1, connections=1
        )

    def order(self, at_least: Position | None = None) -> list[str]:
        return [server.label for server in self.servers.order(at_least, primary=False)]

    def gauge(self, name: str, server: str) -> float | None:
        return self.registry.get_sample_value(f"silogate_silo_{name}", {"silo": "town", "server": server})


def test_a_replica_that_fails_three_times_in_a_row_is_asked_last() -> None:
    """Two failures are none, an answer forgives them; with the last replica failing too the primary goes first."""
    pool = Pool(2)
    one, two = pool.replicas
    for _ in range(2):
        pool.servers.failed(one)
        pool.servers.failed(one)
        assert pool.order()[0] == "replica0"
        pool.servers.answered(one, position(1), seconds=0.01)
    for _ in range(3):
        pool.servers.failed(one)
    assert pool.order() == ["replica1", "primary", "replica0"]
    assert pool.gauge("server_ejected", "replica0") == 1
    for _ in range(3):
        pool.servers.failed(two)
    assert pool.order()[0] == "primary"
    assert sorted(pool.order()) == ["primary", "replica0", "replica1"]
    assert not pool.gauge("server_ejected", "replica1")


def test_a_replica_that_fails_again_and_again_rests_for_longer() -> None:
    """One that answers looks but no questions is tried ever more seldom, until it answers questions."""
    pool = Pool(2)
    one = pool.replicas[0]

    def rest() -> float:
        for _ in range(3):
            pool.servers.failed(one)
        since = pool.now
        while pool.servers.is_aside(one):
            pool.now += 0.5
            pool.servers.answered(one, position(1))
        rested = pool.now - since
        pool.servers.answered(one, position(1))
        return rested

    assert [rest() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    pool.servers.answered(one, position(1), seconds=0.01)
    assert rest() == 1


def test_a_replica_that_has_gone_silent_is_asked_after_the_primary_at_once() -> None:
    """Before any error is known: what was asked of it has had no answer for a while."""
    pool = Pool(1)
    silent = pool.replicas[0]
    assert pool.order() == ["replica0", "primary"]
    silent.in_flight, silent._heard_at = 1, 0.0
    assert pool.order() == ["primary", "replica0"]
    silent.in_flight = 0
    assert pool.order() == ["replica0", "primary"]


def test_lag_is_counted_in_changes_and_in_the_time_that_one_is_missing() -> None:
    """An idle primary makes no lag; one that lags long is asked after one that does not, however busy that is."""
    pool = Pool(2)
    one, two = pool.replicas
    for now, seq in ((0.0, 5), (100.0, 6), (130.0, 8)):
        pool.now = now
        pool.servers.answered(pool.primary, position(seq))
        pool.servers.answered(two, position(seq))
    pool.now = 160.0
    for at, (changes, seconds) in {5: (3, 60), 6: (2, 30), 8: (0, 0), 9: (0, 0)}.items():
        pool.servers.answered(one, position(at))
        assert (pool.gauge("lag_changes", "replica0"), pool.gauge("lag_seconds", "replica0")) == (changes, seconds)
    pool.servers.answered(one, replace(position(8), epoch="e0"))
    assert (pool.gauge("lag_changes", "replica0"), pool.gauge("lag_seconds", "replica0")) == (1, 160)
    two.in_flight, two._heard_at = 7, float("inf")
    assert pool.order() == ["replica1", "replica0", "primary"]
    pool.servers.answered(one, position(8))
    assert pool.order() == ["replica0", "replica1", "primary"]


class Lookup:
    """Any lookup."""

    batch_sql = one_sql = "select"
    batched = True

    def keep(self, _question: Question, _loaded: Loaded) -> None:
        """Keep nothing."""


@pytest.fixture
async def hedging(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Silo, dict[str, float], list[str]]]:
    """A silo whose servers answer after so many seconds by name (below 0: fail at once), and whom it has asked."""
    silo, seconds, asked = town(), {"replica": 0.0, "primary": 0.0}, list[str]()
    for server in (silo._primary, *silo._servers.replicas):
        server.position = position(1)  # connected, and asked before

    async def ask(server: Server, _lookup: object, questions: Sequence[Any]) -> Batch:
        asked.append(server.label)
        if seconds[server.label] < 0:
            raise ServerFailed
        await asyncio.sleep(seconds[server.label])
        is_primary = server.label == "primary"
        return batch(1, from_primary=is_primary, questions=len(questions))

    monkeypatch.setattr(silo, "_ask", ask)
    monkeypatch.setattr(cache.silo, "_LATE_S", 0.05)
    async with asyncio.TaskGroup() as silo._tasks:
        yield silo, seconds, asked


@pytest.mark.parametrize(
    ("replica_s", "primary_s", "by_primary", "servers"),
    [
        (0.0, 0.0, False, ["replica"]),
        (0.3, 0.0, True, ["replica", "primary"]),
        (0.1, 0.3, False, ["replica", "primary"]),
        (0.1, -1, False, ["replica", "primary"]),
        (-1, 0.1, True, ["replica", "primary"]),
    ],
    ids=["in time", "late", "late but first", "late and alone", "failed"],
)
async def test_a_late_answer_is_asked_for_elsewhere_and_the_first_one_counts(
    hedging: tuple[Silo, dict[str, float], list[str]],
    replica_s: float, primary_s: float, by_primary: bool, servers: list[str],
) -> None:  # fmt: skip
    """Where someone waits; each server is asked once."""
    silo, seconds, asked = hedging
    seconds.update(replica=replica_s, primary=primary_s)
    batch = await silo.fetch_batch(Lookup(), [(1,)], hedged=True)
    assert batch.from_primary is by_primary
    assert asked == servers


async def test_a_server_that_has_to_connect_first_is_given_time_for_it(
    hedging: tuple[Silo, dict[str, float], list[str]],
) -> None:
    """A cold process's first question is one query, though its connection takes longer than a query may."""
    silo, seconds, asked = hedging
    for server in silo._servers.replicas:
        server.position = None
    seconds["replica"] = 0.2
    assert not (await silo.fetch_batch(Lookup(), [(1,)], hedged=True)).from_primary
    assert asked == ["replica"]


async def test_what_nobody_waits_for_is_not_asked_twice(hedging: tuple[Silo, dict[str, float], list[str]]) -> None:
    """A refresh takes the time it takes."""
    silo, seconds, asked = hedging
    seconds["replica"] = 0.1
    assert not (await silo.fetch_batch(Lookup(), [(1,)])).from_primary
    assert asked == ["replica"]


async def test_a_silo_that_is_slow_altogether_is_not_asked_twice_for_long(
    hedging: tuple[Silo, dict[str, float], list[str]],
) -> None:
    """The budget ends it: five, and then one in twenty."""
    silo, seconds, asked = hedging
    seconds.update(replica=0.06, primary=0.06)
    await asyncio.gather(*(silo.fetch_batch(Lookup(), [(1,)], hedged=True) for _ in range(100)))
    assert 1 <= asked.count("primary") <= 5
    assert asked.count("replica") == 100


async def test_when_nobody_waits_no_further_server_is_asked(
    hedging: tuple[Silo, dict[str, float], list[str]],
) -> None:
    """One failed, and all callers have gone: the next one is spared."""
    silo, seconds, asked = hedging
    seconds["replica"] = -1
    with pytest.raises(NobodyWaits):
        await silo.fetch_batch(Lookup(), [(1,)], wanted=lambda: not asked)
    assert asked == ["replica"]


async def test_when_all_have_gone_an_answer_in_hand_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that was one change behind has answered: that is kept, and no second one is asked for a newer one."""
    silo, asked = town(replicas=2), list[str]()

    async def ask(server: Server, _lookup: object, _questions: Sequence[Any]) -> Batch:
        asked.append(server.label)
        return batch(5, from_primary=False)

    monkeypatch.setattr(silo, "_ask", ask)
    found = await silo.fetch_batch(Lookup(), [(1,)], at_least=position(6), wanted=lambda: not asked)
    assert found.oldest == position(5)
    assert asked == ["replica0"]


@pytest.mark.parametrize("replicas", [0, 1])
async def test_what_nobody_foresaw_fails_one_question_and_not_the_silo(
    monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    """With a second server to ask or without: who asked is told, and the next question is answered."""
    silo, faults = town(replicas=replicas), [RuntimeError("a closed transport")]

    async def ask(_server: Server, _lookup: object, _questions: Sequence[Any]) -> Batch:
        if faults:
            raise faults.pop()
        return batch(1, from_primary=True)

    async def nothing(*_: object, **__: object) -> None:
        raise ServerFailed

    monkeypatch.setattr(silo, "_ask", ask)
    monkeypatch.setattr(Server, "fetch", nothing)
    running = asyncio.create_task(silo.run())
    with pytest.raises(RuntimeError, match="a closed transport"):
        await silo.loader.load(Lookup(), Question("0" * 32, (1,), ()))
    assert (await silo.loader.load(Lookup(), Question("0" * 32, (1,), ()))).body == b"[]"
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_what_a_server_mostly_takes_at_most_is_learnt() -> None:
    """The estimate settles near the 95th percentile, whatever it began with."""
    server = Pool(0).primary
    times = random.Random(95)
    for _ in range(5000):
        server.took(times.uniform(0.0, 0.01))
    assert 0.008 < server.p95_s < 0.0105
