"""What follows an attempt, decided without a database: nothing that may have happened is ever called a failure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.effects.effect import HeldEffect, Outcome, Verdict
from streams.effects.resolution import LOST_AT_THE_ACT, Patience, after, key_is_spent
from tests.providers import KeyedSearchableSink, KeyedSink, NaturalSink, NoneSink, SearchableSink

SINKS: dict[str, Any] = {
    "none": NoneSink(),
    "natural": NaturalSink(),
    "keyed": KeyedSink(),
    "searchable": SearchableSink(),
    "keyed and searchable": KeyedSearchableSink(),
}
PATIENCE = Patience(share=lambda: 1.0)


def held(**changed: Any) -> HeldEffect:
    effect = HeldEffect(
        effect_id=uuid4(),
        sink="email",
        case_id=uuid4(),
        case_version=1,
        purpose="confirmation",
        state="intent",
        payload=b"",
        request=b"",
        request_sha256=b"",
        attempt=1,
        adopted=False,
        correlation_id="c",
        created_at=datetime.now(UTC),
    )
    return replace(effect, **changed)


@settings(max_examples=1_000)
@given(
    name=st.sampled_from(sorted(SINKS)),
    outcome=st.sampled_from(get_args(Outcome)),
    doubted=st.booleans(),
    old=st.booleans(),
    reason=st.sampled_from(["http:400", "erased", "stored_bytes_differ", LOST_AT_THE_ACT]),
)
def test_doubt_ends_in_knowledge_only(name: str, outcome: Outcome, doubted: bool, old: bool, reason: str) -> None:
    """Done is said of what is done; failed never of what may have happened; again never where twice does harm."""
    born = datetime.now(UTC) - timedelta(days=30 if old else 0)
    then = after(SINKS[name], held(doubted=doubted, created_at=born), 1, Verdict(outcome, reason), PATIENCE)
    assert (then.state == "done") == (outcome == "done")
    if then.state == "failed":
        refused_under_its_key = name.startswith("keyed") and outcome == "failed" and reason == "http:400"
        assert outcome != "unknown"
        assert not doubted or refused_under_its_key
    if then.state == "again":
        assert not old
        assert outcome == "not_sent" or name in ("natural", "keyed", "keyed and searchable")
    if then.ask_in_s is not None:
        assert then.state == "unknown"
        assert "searchable" in name


def test_a_worker_that_may_still_be_talking_is_waited_for() -> None:
    """A search after a lost worker waits for the time of its call beside the provider's lag."""
    sink = SINKS["searchable"]
    lost = after(sink, held(), 1, Verdict("unknown", LOST_AT_THE_ACT), PATIENCE)
    told = after(sink, held(), 1, Verdict("unknown", "http:reset"), PATIENCE)
    assert (lost.ask_in_s, told.ask_in_s) == (sink.settle_lag_s + sink.timeout_s, sink.settle_lag_s)


@pytest.mark.parametrize(
    ("name", "doubted", "left_s", "spent"),
    [
        ("keyed", True, 3600.0, False),
        ("keyed", True, 319.0, True),
        ("keyed", True, None, True),
        ("keyed", False, -5.0, False),
        ("natural", True, None, False),
    ],
)
def test_a_key_is_spent_before_its_provider_forgets_it(
    name: str, doubted: bool, left_s: float | None, spent: bool
) -> None:
    """With less left than a call and the margin take, a doubtful effect is not performed under its key."""
    assert key_is_spent(SINKS[name], held(doubted=doubted, key_left_s=left_s), PATIENCE) is spent
