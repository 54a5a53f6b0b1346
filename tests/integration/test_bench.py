"""The bench measures, compares answers before it counts, and writes rows of the agreed form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.load import bench_lookups, machine
from tests.load.bench import Bench
from tests.load.bench_lookups import answer_text, compare_answers
from tests.load.comparison import Comparison, Measured, as_json, meets
from tests.load.council import establish, rows_of
from tests.load.sides import Side, Unfit

_VERSIONS = {"python": "3.11"}


@pytest.fixture
async def bench(stack: Stack, database: Database, redis_url: str, tmp_path: Path) -> Bench:
    """A council of a few postcodes in a database of the test's own, and one short round."""
    own = dataclasses.replace(
        stack.servers, postgres_url=database.url, replica_url=database.replica_url, redis_url=redis_url
    )
    council = await establish(own, tmp_path, postcodes=100)
    number = int(redis_url.rpartition("/")[2])
    quiet = Console(quiet=True)
    return Bench(council, stack, machine.Cores(), rounds=1, seconds=0.3, is_quick=True, database=number, console=quiet)


@pytest.mark.skipif(not machine.CAN_MEASURE, reason="it reads another process's clock, which needs Linux")
async def test_a_short_run_gives_a_row_for_each_peer(bench: Bench) -> None:
    """P1 against all four peers: every side is asked, its answers are compared, and every row is whole."""
    rows = [as_json(row, _VERSIONS) for row in await bench_lookups.warm(bench)]
    assert [(row["id"], row["measure"]) for row in rows] == [
        ("P1", "bare"), ("P1", "redis"), ("P1", "aiocache"), ("P1", "fastapi"),
    ]  # fmt: skip
    for row in rows:
        assert list(row) == ["id", "measure", "value", "better", "must", "aim", "rounds", "versions"]
        assert row["value"] > 0
        assert row["rounds"] == [row["value"]]
        assert row["must"] < row["aim"]
    assert bench.compared > 0


def test_a_wrong_answer_has_no_number(tmp_path: Path) -> None:
    """A side that answers with another postcode's addresses is refused, and so is one that answered nothing."""
    side = Side("ours", tmp_path / "log")
    council: Any = None
    bench = Bench(council, council, machine.Cores(), rounds=1)
    right = {"requests": 1, "samples": [[3, "HTTP/1.1 200 OK", answer_text(3)]]}
    compare_answers(side, right, bench)
    assert bench.compared == 1
    wrong = {"requests": 1, "samples": [[3, "HTTP/1.1 200 OK", answer_text(4)]]}
    with pytest.raises(Unfit, match="wrongly"):
        compare_answers(side, wrong, bench)
    with pytest.raises(Unfit, match="compared"):
        compare_answers(side, {"requests": 0, "samples": []}, bench)


def test_an_answer_is_what_the_silo_holds() -> None:
    """The peers' answers have the gateway's fields and the rows that COPY put into the silo."""
    answer = json.loads(answer_text(7))
    assert list(answer) == ["lookup", "verdict", "as_of", "results"]
    assert answer["results"] == rows_of(7)


def test_a_ratio_is_the_median_and_a_limit_is_the_worst() -> None:
    """One slow round does not spoil a ratio; one violation spoils a limit."""
    ratio = Comparison("P1", "bare", "higher", 0.55, 0.8, "", [(6.0, 10.0), (1.0, 10.0), (7.0, 10.0)])
    assert as_json(ratio, _VERSIONS)["value"] == 0.6
    assert meets(ratio, ratio.must)
    assert not meets(ratio, ratio.aim)
    limit = Measured("P5", "violations", 0, 0, [0, 1, 0], "")
    assert as_json(limit, _VERSIONS)["value"] == 1
    assert not meets(limit, limit.must)
