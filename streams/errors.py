"""What a handler may tell the consumer: one exception for each decision that follows.

The texts end up in tables, logs and operator pages: they name fields and causes, never a personal value.
"""

from uuid import UUID


class Retryable(Exception):
    """The case cannot be handled now; try it again later.

    It stays at the head of its lane with a growing, random delay while other cases flow, and is parked when the limit
    of attempts is reached. `retry_after` is the least number of seconds to wait, as the recipient asked. A batch
    handler may name the one case it is about; without it every case of the batch waits.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, case_id: UUID | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.case_id = case_id


class Untried(Retryable):
    """Nothing was tried for this case, because others of its batch took too long: no attempt is counted against it.

    It comes back in a smaller batch. A handler that answers so must also name, or settle, at least one case.
    """


class Unavailable(Retryable):
    """The recipient as a whole is away: no case is to blame, so nothing is counted against one and nothing is parked.

    All lanes of the consumer wait together, with a growing delay, until the recipient answers again.
    """


class Rejected(Exception):
    """The event will never be accepted as it is: park the case at once.

    A batch handler names the case when it knows it; otherwise the consumer halves the batch until the bad one is alone.
    """

    def __init__(self, reason: str, field: str | None = None, *, case_id: UUID | None = None) -> None:
        super().__init__(reason if field is None else f"{field}: {reason}")
        self.reason = reason
        self.field = field
        self.case_id = case_id


class Fenced(Exception):
    """Another process owns the partition now: this one must let go of it and write nothing more."""


class Misconfigured(Exception):
    """No event can succeed until a person changes the configuration: the connector stops, nothing is parked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Undecodable(Exception):
    """A record that is not an event this version can read. `stage` is where reading stopped, `field` at what."""

    def __init__(self, stage: str, field: str | None, reason: str) -> None:
        super().__init__(f"{stage}: {reason}" if field is None else f"{stage}: {field} {reason}")
        self.stage = stage
        self.field = field
        self.reason = reason
