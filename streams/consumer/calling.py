"""One call of a handler: within its time, and whatever it raises made into an answer."""

import asyncio
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

from streams.consumer.fence import Fence
from streams.consumer.handlers import AppliesEach, BatchHandler, CaseHandler, EndsByItself
from streams.errors import Fenced, Misconfigured, Rejected, Retryable, Unavailable
from streams.events import CaseEvent

log = logging.getLogger(__name__)

Errors = Mapping[UUID, Rejected | Retryable]


class Caller:
    """Calls the handler of one group. Each call ends within `timeout_s`."""

    def __init__(self, handler: BatchHandler | CaseHandler, *, group: str, timeout_s: float) -> None:
        if isinstance(handler, EndsByItself) and handler.deadline_s >= timeout_s:
            # The consumer would give up first, and could only guess which case of the batch was to blame.
            raise ValueError(f"the handler may take {handler.deadline_s} s, and is cut off after {timeout_s} s")
        self._handler = handler
        self._group = group
        self._timeout_s = timeout_s
        self.takes_batches = isinstance(handler, BatchHandler)
        self.names_each = isinstance(handler, AppliesEach)

    async def call(self, events: Sequence[CaseEvent], held: Fence) -> Errors | Rejected | Retryable:
        """Calls the handler once: event id → error of what was not done, or one error for all of it.

        Raises only Fenced and Misconfigured.
        """
        handler = self._handler
        try:
            async with asyncio.timeout(self._timeout_s):
                if isinstance(handler, AppliesEach):
                    return await handler.apply_each(events, held)
                if isinstance(handler, BatchHandler):
                    await handler.apply(events, held)
                else:
                    await handler.handle(events[0], held)
        except (Rejected, Retryable) as answer:
            return answer
        except (Fenced, Misconfigured):
            raise
        except TimeoutError:
            return Retryable("the handler did not end in time")
        except OSError as error:
            return Unavailable(f"no connection: {type(error).__name__}")
        # A fault in a handler must neither lose the event nor stop the other cases: it counts as an attempt, and the
        # case is parked for a person when it does not go away. Only the class is told: a text may quote the event.
        except Exception as error:  # noqa: BLE001
            log.error(  # noqa: TRY400
                "consumer.handler_failed",
                extra={"group": self._group, "error": type(error).__name__, "where": _where(error)},
            )
            return Retryable(f"unexpected {type(error).__name__} in the handler")
        return {}

    async def call_one(self, event: CaseEvent, held: Fence) -> Rejected | Retryable | None:
        """Calls the handler for one event: None when it is done."""
        answer = await self.call([event], held)
        return answer.get(event.event_id) if isinstance(answer, Mapping) else answer


def _where(error: BaseException) -> str:
    """File and line of the fault: enough to find it, and nothing that the error quotes."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
