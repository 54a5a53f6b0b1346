"""Which event of each case is pushed: the newest one that can be, because it holds the whole case.

A batch may carry several events of one case. The last one that maps and that the recipient takes is written once; what
came before it is contained in it, and what came after it is named with its error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from streams.errors import Rejected, Retryable
from streams.events import CaseEvent

MapEvent = Callable[[CaseEvent], dict[str, Any]]


@dataclass(slots=True)
class Candidate:
    """One case of a batch: the event chosen, its row, and the older events to fall back on."""

    event: CaseEvent
    row: dict[str, Any]
    older: list[CaseEvent]


@dataclass(slots=True)
class Choice:
    """A batch made ready: rows to write, versions to record, and the events that cannot be written and why."""

    candidates: list[Candidate] = field(default_factory=list)
    echoes: list[CaseEvent] = field(default_factory=list)
    errors: dict[UUID, Rejected | Retryable] = field(default_factory=dict)
    refused: list[CaseEvent] = field(default_factory=list)

    def refuse(self, event: CaseEvent, error: Rejected | Retryable) -> None:
        """Names an event that was not applied."""
        error.case_id = event.case_id
        self.errors[event.event_id] = error
        self.refused.append(event)

    def choose(self, events: Sequence[CaseEvent], map_event: MapEvent) -> Candidate | None:
        """The newest event of a case that maps; those newer than it are named."""
        left = list(events)
        while left:
            event = left.pop()
            try:
                return Candidate(event, map_event(event), left)
            except Rejected as error:
                self.refuse(event, error)
        return None


def choose(events: Iterable[CaseEvent], origin: str, map_event: MapEvent) -> Choice:
    """Sorts a batch by case. A case in which only the recipient itself changed something is an echo."""
    by_case: dict[UUID, list[CaseEvent]] = {}
    for event in events:
        by_case.setdefault(event.case_id, []).append(event)
    choice = Choice()
    for of_case in by_case.values():
        of_case.sort(key=lambda event: event.version)
        if all(event.origin == origin for event in of_case):
            choice.echoes.append(of_case[-1])
            continue
        candidate = choice.choose(of_case, map_event)
        if candidate is not None:
            choice.candidates.append(candidate)
    return choice


def columns_of(candidates: Sequence[Candidate], names: Sequence[str]) -> list[list[Any]]:
    """The parameters of the push: references, versions, then a list a column."""
    rows: list[Mapping[str, Any]] = [candidate.row for candidate in candidates]
    return [
        [candidate.event.reference for candidate in candidates],
        [candidate.event.version for candidate in candidates],
        *([row[name] for row in rows] for name in names),
    ]
