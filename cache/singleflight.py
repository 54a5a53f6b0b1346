"""One load for each key, whoever asks for it and whoever stops waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Flight(Generic[T]):
    """A result on its way. The work belongs to nobody who waits, so no waiter's end can end it."""

    __slots__ = ("_error", "_result", "_waiters", "landed", "unattended")

    def __init__(self, *, unattended: bool = False) -> None:
        self.landed = False
        self.unattended = unattended
        self._result: T | None = None
        self._error: Exception | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits, or the flight was begun for nobody in particular."""
        return self.unattended or any(not waiter.done() for waiter in self._waiters)

    async def wait(self) -> T:
        """The result, or the error that the work ended with; cancelling this leaves the work and all others alone."""
        if not self.landed:
            # A future of one's own: cancelling a task cancels the future that it awaits.
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if not self.landed:
                    self._waiters.remove(waiter)
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value] # landed without an error, so there is a result

    def land(self, result: T) -> None:
        self._result = result
        self._end()

    def crash(self, error: Exception) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        self.landed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


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
