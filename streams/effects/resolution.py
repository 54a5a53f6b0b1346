"""What follows the end of an attempt, by what the sink's provider offers against doing something twice.

Only an attempt that may have happened makes a difference. `natural`: the same bytes are performed again, for doing it
again changes nothing. `keyed`: again too, under the same key, as long as the provider surely knows it. `searchable`:
the provider is asked, after it has had time to show what it did; what it twice does not know is performed again.
`none`: a person finds out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from streams.effects.effect import HeldEffect, Verdict
from streams.sinks import Searches, Sink, SinkClass

LOST_AT_THE_ACT = "worker_lost_at_the_act"
KEY_EXPIRED = "key_expired"
NOT_FOUND = "not_found_twice"
# Words of our own: they say nothing of what the provider did at an earlier attempt.
_OURS = frozenset({"erased", "stored_bytes_differ", LOST_AT_THE_ACT, KEY_EXPIRED, NOT_FOUND})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the ledger waits for what. The defaults suit a mail server that may be away for days."""

    poll_s: float = 0.25
    backoff_s: float = 2.0
    backoff_cap_s: float = 900.0
    give_up_after_s: float = 4 * 86400.0
    settle_s: float = 60.0
    census_s: float = 5.0
    # How long before a provider forgets a key it is no longer relied on.
    key_margin_s: float = 300.0
    # For how long a provider is asked about what is unknown; then a person has to find out.
    ask_for_s: float = 7 * 86400.0
    share: Callable[[], float] = random.random

    def delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Return the wait after the nth attempt: a random share of a doubling span, and never less than was asked."""
        span = min(self.backoff_cap_s, self.backoff_s * 2.0 ** min(attempt - 1, 32))
        return max(self.share() * span, retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class Next:
    """What becomes of an effect. `again`: another attempt with the same bytes, after `delay_s`.

    `detail` is the provider's reference when done, else the reason. `ask_in_s`: when to ask the provider about an
    effect that is unknown; None: only a person, or the worker that was taken for lost, can tell.
    """

    state: Literal["done", "failed", "unknown", "again"]
    detail: str
    delay_s: float = 0.0
    ask_in_s: float | None = None


def after(sink: Sink, effect: HeldEffect, attempt: int, verdict: Verdict, patience: Patience) -> Next:
    """Decide what an attempt's outcome leads to. Pure but for the clock and the dice of `patience`."""
    again = Next("again", verdict.detail, patience.delay_s(attempt, verdict.retry_after_s))
    weary = age_s(effect) > patience.give_up_after_s
    match verdict.outcome:
        case "done":
            return Next("done", verdict.detail)
        case "unknown" if sink.sink_class in (SinkClass.KEYED, SinkClass.NATURAL) and not weary:
            return again
        case "unknown":
            return unknown(sink, verdict.detail)
        case "not_sent" if not weary:
            return again
        case "not_sent":
            reason = f"gave_up:{verdict.detail}"
            return unknown(sink, reason) if effect.doubted else Next("failed", reason)
        case _:
            return _refused(sink, effect, verdict.detail)


def unknown(sink: Sink, reason: str) -> Next:
    """Return what follows when nobody knows: a question to the provider where it answers such questions."""
    if not asks(sink):
        return Next("unknown", reason)
    assert isinstance(sink, Searches)  # noqa: S101 - what `asks` has just said
    # A worker that was taken for lost may still be talking to the provider until its time is up.
    still_talking = sink.timeout_s if reason == LOST_AT_THE_ACT else 0.0
    return Next("unknown", reason, ask_in_s=sink.settle_lag_s + still_talking)


def asks(sink: Sink) -> bool:
    """Tell whether the ledger asks this sink's provider about what is unknown."""
    return sink.sink_class in (SinkClass.SEARCHABLE, SinkClass.KEYED) and isinstance(sink, Searches)


def key_is_spent(sink: Sink, effect: HeldEffect, patience: Patience) -> bool:
    """Tell whether an effect that may have happened can no longer be performed under its key."""
    if sink.sink_class is not SinkClass.KEYED or not effect.doubted:
        return False
    return effect.key_left_s is None or effect.key_left_s < sink.timeout_s + patience.key_margin_s


def age_s(effect: HeldEffect) -> float:
    """Return how long ago the effect was planned."""
    return (datetime.now(UTC) - effect.created_at).total_seconds()


def _refused(sink: Sink, effect: HeldEffect, reason: str) -> Next:
    """A refusal for good ends the effect, unless an earlier attempt may have happened all the same.

    Under a key the provider's refusal holds for all of them: it would have repeated its answer to the first.
    """
    if effect.doubted and (sink.sink_class is not SinkClass.KEYED or reason in _OURS):
        return Next("unknown", reason) if reason in _OURS else unknown(sink, reason)
    return Next("failed", reason)
