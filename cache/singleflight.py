"""One load for each key, whoever asks for it and whoever stops waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Flight(Generic[T]):
    """A result on its way. The work belongs to nobody who waits, so no waiter's end can end it."""

    __slots__ = ("_told", "landed", "outcome", "unattended")

    def __init__(self, *, unattended: bool = False) -> None:
        self.landed = False
        self.unattended = unattended
        self.outcome: T | Exception | None = None
        self._told: dict[Callable[[T | Exception], None], None] = {}

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits, or the flight was begun for nobody in particular."""
        return self.unattended or bool(self._told)

    def join(self, told: Callable[[T | Exception], None]) -> None:
        """`told`, which must not raise, gets the result or the error when the flight lands, once."""
        self._told[told] = None

    def leave(self, told: Callable[[T | Exception], None]) -> None:
        """Be told no more; nothing happens to one that has been told."""
        self._told.pop(told, None)

    async def wait(self) -> T:
        """The result, or the error that the work ended with; cancelling this leaves the work and all others alone."""
        if not self.landed:
            # A future of one's own: cancelling a task cancels the future that it awaits.
            waiter = asyncio.get_running_loop().create_future()

            def tell(_outcome: T | Exception) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self.join(tell)
            try:
                await waiter
            finally:
                self.leave(tell)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome  # type: ignore[return-value] # landed without an error, so there is a result

    def land(self, result: T) -> None:
        self._end(result)

    def crash(self, error: Exception) -> None:
        self._end(error)

    def _end(self, outcome: T | Exception) -> None:
        self.landed = True
        self.outcome = outcome
        waiting, self._told = self._told, {}
        for told in waiting:
            told(outcome)


class SingleFlight(Generic[K, T]):
    """The flights that have not landed, by key."""

    def __init__(self) -> None:
        self._flights: dict[K, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, key: K) -> Flight[T] | None:
        return self._flights.get(key)

    def begin(self, key: K, *, unattended: bool = False) -> Flight[T]:
        """A new flight for a key that has none; end it by `land` or `crash` of this object."""
        flight = self._flights[key] = Flight(unattended=unattended)
        return flight

    def land(self, key: K, result: T) -> None:
        self._flights.pop(key).land(result)

    def crash(self, key: K, error: Exception) -> None:
        self._flights.pop(key).crash(error)
