"""How much a consumer holds, how long it waits, and how it introduces itself to Kafka."""

import random
from dataclasses import dataclass, field

LEAST_DELAY_S = 0.01


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon: full jitter below a limit that doubles with each attempt."""

    attempts: int = 5
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0

    def delay_s(self, attempts: int, retry_after: float | None = None) -> float:
        """A random delay; never less than what the recipient asked for."""
        limit = min(self.longest_delay_s, self.first_delay_s * 2 ** min(attempts, 20))
        drawn = max(LEAST_DELAY_S, random.uniform(0, limit))  # noqa: S311 - jitter
        return drawn if retry_after is None else retry_after + random.uniform(0, self.first_delay_s)  # noqa: S311


@dataclass(frozen=True, slots=True)
class FuseLimits:
    """When it blows: of the last `window` cases, once there are `least`, more than `max_ratio` had to be parked.

    Also when `max_consecutive` cases were parked with none that went through between them. After it has blown,
    `probe` cases are enough until more of them go through than fail.
    """

    window: int = 1000
    max_ratio: float = 0.5
    least: int = 50
    max_consecutive: int = 200
    probe: int = 10


@dataclass(frozen=True, slots=True)
class SessionTimeouts:
    """Kafka's view of a member, in milliseconds."""

    session_ms: int = 45_000
    heartbeat_ms: int = 3_000
    rebalance_ms: int = 60_000
    max_poll_ms: int = 300_000
    request_ms: int = 40_000


@dataclass(frozen=True, slots=True)
class ConsumerLimits:
    """The bounds of one consumer. Memory is at most `events` and `bytes`, and what Kafka sends ahead: `fetch_bytes`."""

    events: int = 5_000
    bytes: int = 32 * 1024 * 1024
    fetch_bytes: int = 8 * 1024 * 1024
    partition_events: int = 5_000
    known_cases: int = 50_000
    parallel: int = 32
    batch_events: int = 500
    handler_timeout_s: float = 60.0
    drain_s: float = 20.0
    commit_every_s: float = 1.0
    resume_every_s: float = 1.0
    call_timeout_s: float = 10.0
    stall_s: float = 60.0
    watch_every_s: float = 5.0
    shut_poll_s: float = 15.0
    retry: Retry = field(default_factory=Retry)
    fuse: FuseLimits | None = None
    sessions: SessionTimeouts = field(default_factory=SessionTimeouts)
