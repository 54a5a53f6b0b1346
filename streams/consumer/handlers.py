"""What the consumer calls: the two kinds of handler, and the hook that tells one which partitions are now its own.

A handler raises the errors of streams.errors. Events reach it at least once: it drops a version that it has applied
already. Everything it awaits needs a deadline of its own; the consumer's `handler_timeout_s` is only the last resort.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable
from uuid import UUID

from streams.consumer.fence import Fence
from streams.errors import Rejected, Retryable
from streams.events import CaseEvent


@runtime_checkable
class BatchHandler(Protocol):
    """Applies many events at once, in one transaction of its recipient."""

    async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
        """Applies all of them or none. A case may occur several times, in the order of its versions."""
        ...


@runtime_checkable
class AppliesEach(BatchHandler, Protocol):
    """A batch handler that names what it could not apply, so that nobody has to search a batch for it.

    It may be called for two batches at once, never for one case in both: what failed before is tried beside the rest.
    """

    async def apply_each(self, events: Sequence[CaseEvent], fence: Fence) -> Mapping[UUID, Rejected | Retryable]:
        """Applies what can be applied and returns event id → error for the rest, each error with its case_id.

        An event it does not name is settled. Of a named one nothing was written, and all events of its case
        after it are named too; Untried for those whose turn did not come. Raising instead says nothing of any
        event: Unavailable, Fenced or Misconfigured.
        """
        ...


@runtime_checkable
class EndsByItself(Protocol):
    """A handler that says how long one call of it takes at most: it must be less than `handler_timeout_s`."""

    @property
    def deadline_s(self) -> float:
        """The longest that a call lasts, in seconds."""
        ...


@runtime_checkable
class CaseHandler(Protocol):
    """Handles one event at a time, many cases at once, never two events of one case at once."""

    async def handle(self, event: CaseEvent, fence: Fence) -> None:
        """Handles the event; returning means that it is done for good."""
        ...


@runtime_checkable
class TakesPartitions(Protocol):
    """A handler that must know its fence before the first event, to make it known in its own database."""

    async def on_assigned(self, fence: Fence) -> None:
        """Called before any event of these partitions; called again after a failure, so it must be repeatable."""
        ...
