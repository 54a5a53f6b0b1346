"""How long the ledger waits before it tries an effect again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.ledger import Patience


@given(attempt=st.integers(1, 10_000), share=st.floats(0, 1))
def test_the_wait_is_a_random_share_of_a_growing_span(attempt: int, share: float) -> None:
    """Full jitter: anything from nothing to a span that doubles with each attempt and never exceeds the cap."""
    patience = Patience(backoff_s=2.0, backoff_cap_s=900.0, share=lambda: share)
    wait = patience.delay_s(attempt, None)
    assert 0 <= wait <= 900.0
    assert wait <= 2.0 * 2 ** min(attempt - 1, 20)


@given(attempt=st.integers(1, 100), asked=st.floats(0, 86400))
def test_what_the_provider_asks_for_is_waited(attempt: int, asked: float) -> None:
    """A provider that says when to come back is not asked earlier, whatever the dice say."""
    assert Patience(share=lambda: 0.0).delay_s(attempt, asked) == asked
    assert Patience(share=lambda: 1.0).delay_s(attempt, asked) >= asked


def test_the_first_wait_is_short_and_the_longest_a_quarter_of_an_hour() -> None:
    """A mail server that was restarted costs seconds; one that is down for a day is asked every quarter of an hour."""
    longest = [Patience(share=lambda: 1.0).delay_s(attempt, None) for attempt in (1, 2, 3, 10, 50)]
    assert longest == [2.0, 4.0, 8.0, 900.0, 900.0]
