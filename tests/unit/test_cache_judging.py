"""Of which answers a silo may say that there is none: those that a look at it covers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cache.answer import Verdict
from cache.metrics import CacheMetrics
from cache.server import Server, ServerFailed
from cache.silo import Silo
from cache.standing import STANDING_SQL
from cache.values import Index, Tagger

TAGGER = Tagger("town", {"address": (Index("uprn", ("uprn",), "value", ("uprn",)),)}, b"t" * 32, "1")
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


class Servers:
    """What each server shows of the silo, by name; one that is not here is down."""

    def __init__(self) -> None:
        self.shown: dict[str, tuple[str, int]] = {}
        self.looks = 0

    async def fetch(self, server: Server, sql: str, arguments: Sequence[Any], **_: object) -> list[dict[str, Any]]:
        if server.label not in self.shown:
            raise ServerFailed
        epoch, seq = self.shown[server.label]
        self.looks += sql == STANDING_SQL
        row = {"epoch": epoch, "seq": seq, "id": f"id{seq}", "definition": TAGGER.definition, "load_id": 1}
        # As in the statement: the rejects of a load that is known already are not shown again.
        rejects = None if arguments and arguments[0] == 1 else "[]"
        return [row | {"source_time": NOW, "rejects": rejects, "rejected_tables": [], "load_before": None}]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """All servers are down."""
    servers = Servers()

    async def fetch(server: Server, sql: str, arguments: Sequence[Any], **options: object) -> list[dict[str, Any]]:
        return await servers.fetch(server, sql, arguments, **options)

    monkeypatch.setattr(Server, "fetch", fetch)
    return servers


@contextlib.asynccontextmanager
async def _town(max_age_s: float | None = None) -> AsyncIterator[Silo]:
    urls = ["postgresql://near/x", "postgresql://far/x"]
    metrics = CacheMetrics(CollectorRegistry())
    silo = Silo(
        "town",
        "postgresql://primary/x",
        urls,
        TAGGER,
        metrics,
        max_age_s=max_age_s,
        rejects_tolerated=False,
        now=lambda: NOW,
    )
    running = asyncio.create_task(silo.run())
    try:
        yield silo
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _judged(silo: Silo, epoch: str, seq: int, *, negative: bool = True) -> tuple[Verdict, str | None]:
    """What is said of it after a look; where something is said without one, that must be the same."""
    asked: dict[str, Any] = {
        "negative": negative, "epoch": epoch, "seq": seq, "tags": ["t"], "tables": ["address"], "max_age_s": None,
    }  # fmt: skip
    at_once = silo.judge_now(**asked)
    said = await silo.judge(**asked, deadline=asyncio.get_running_loop().time() + 2)
    assert at_once in (None, said)
    assert silo.judge_now(**asked) in (None, said)
    return said


async def test_the_first_verdicts_of_a_process_need_a_look_that_covers_them(servers: Servers) -> None:
    """The primary is down and a replica that is behind is all there is to look at: what is newer may be in doubt."""
    servers.shown["near"] = "e1", 20
    async with _town() as silo:
        assert await _judged(silo, "e1", 30) == ("cannot_tell", "unknown")
        assert await _judged(silo, "e1", 30, negative=False) == ("found", None)
        assert await _judged(silo, "e1", 20) == ("not_found", None)
        servers.shown["primary"] = "e1", 30
        assert await _judged(silo, "e1", 30) == ("not_found", None)


async def test_with_no_server_to_look_at_nothing_is_said_of_what_is_absent(servers: Servers) -> None:
    """Whether they were never there or have gone; what was covered before stays covered."""
    async with _town() as silo:
        assert await _judged(silo, "e1", 30) == ("cannot_tell", "unknown")
        servers.shown["primary"] = "e1", 30
        assert await _judged(silo, "e1", 30) == ("not_found", None)
        servers.shown.clear()
        assert await _judged(silo, "e1", 31) == ("cannot_tell", "unknown")
        assert await _judged(silo, "e1", 30) == ("not_found", None)


async def test_of_a_timeline_that_has_ended_nothing_absent_is_said(servers: Servers) -> None:
    """A replica still on it has what its own last loads left, of which the new primary knows nothing."""
    servers.shown["primary"] = "e2", 40
    async with _town() as silo:
        assert await _judged(silo, "e1", 35) == ("cannot_tell", "unknown")
        assert await _judged(silo, "e1", 45) == ("cannot_tell", "unknown")
        assert await _judged(silo, "e1", 45, negative=False) == ("found", None)


async def test_in_a_new_timeline_an_answer_is_placed_by_a_look_before_its_age_is_judged(servers: Servers) -> None:
    """A promotion makes nothing too old; what is on the timeline that has ended may be of any age."""
    servers.shown["primary"] = "e1", 30
    async with _town(max_age_s=3600) as silo:
        assert await _judged(silo, "e1", 30, negative=False) == ("found", None)
        servers.shown["primary"] = "e2", 31
        assert await _judged(silo, "e2", 31, negative=False) == ("found", None)
        assert await _judged(silo, "e1", 30, negative=False) == ("found", None)
    async with _town(max_age_s=3600) as silo:
        assert await _judged(silo, "e1", 45, negative=False) == ("cannot_tell", "too_old")
