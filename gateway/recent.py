"""What was made not long ago, so that it need not be made again: bounded in number and in bytes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Two generations: when the young one is full it becomes the old one, and what was old and not asked for is gone.

    So at most twice `most` values and twice `most_bytes` are held, and a look costs no more than one in a dict.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._young: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def clear(self) -> None:
        """Keep nothing."""
        self._young, self._old, self._bytes = {}, {}, 0

    def get(self, key: K) -> V | None:
        """The value, if it is still there."""
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is None:
                return None
            self.put(key, *found)
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep it for a while. `size` is about what it takes, with its key."""
        if size * 16 > self._most_bytes:
            return
        if len(self._young) >= self._most or self._bytes + size > self._most_bytes:
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[key] = value, size
        self._bytes += size
