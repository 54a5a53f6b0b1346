"""Goes through every world that can be reached, breadth first."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.model.moves import Model
from tests.model.world import World


@dataclass(frozen=True)
class Found:
    """How many worlds were seen, and the shortest way to one in which something is wrong, if there is one."""

    worlds: int
    wrong: str | None = None
    trace: tuple[str, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        steps = [f"{number:3}. {step}" for number, step in enumerate(self.trace, 1)]
        return "\n".join([f"{self.wrong or 'nothing is wrong'} ({self.worlds:,} worlds)", *steps])


def explore(model: Model, *, most: int) -> Found:
    """Search until something is wrong, until there is nothing left, or until `most` worlds have been seen."""
    start = model.beginning()
    came: dict[World, tuple[World, str] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        for label, reached, wrong in model.moves(world):
            if wrong is not None:
                return Found(len(came), wrong, (*_way_to(came, world), label))
            after = model.living(reached)
            if after in came:
                continue
            came[after] = (world, label)
            found = model.wrong(after)
            if found is not None:
                return Found(len(came), found, _way_to(came, after))
            if len(came) >= most:
                return Found(len(came), complete=False)
            waiting.append(after)
    return Found(len(came))


def _way_to(came: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    steps: list[str] = []
    before = came[world]
    while before is not None:
        world, label = before
        steps.append(label)
        before = came[world]
    return tuple(reversed(steps))
