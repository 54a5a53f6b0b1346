"""Where a process keeps entries: by digest, by tag, and no more than a number of them and of bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from cache.entry import Entry
from cache.state import State

# What Python takes for an entry without its body, and for one tag with its place in the index; measured, rounded up.
_ENTRY_BYTES = 500
_TAG_BYTES = 400
# One answer may not push out more than this share of all others.
_LARGEST_SHARE = 16


@dataclass(frozen=True, slots=True)
class Held:
    """An entry that no change up to `state` has touched since it was read."""

    entry: Entry
    state: State


@dataclass(slots=True)
class Slot:
    """An entry with its tags, until `ends_ms` by Redis's clock. `held` is what was last given out of it."""

    entry: Entry
    tags: tuple[str, ...]
    ends_ms: int
    size: int
    held: Held


class Shelf:
    """Entries by digest and by tag. Where there are too many, the one goes that was not asked for longest."""

    def __init__(self, most_entries: int, most_bytes: int) -> None:
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self.slots: OrderedDict[str, Slot] = OrderedDict()
        self.tagged: dict[str, set[str]] = {}
        self.bytes = 0

    def put(self, digest: str, slot: Slot) -> int:
        """Returns how many others had to go."""
        self.drop(digest)
        if slot.size * _LARGEST_SHARE > self._most_bytes:
            return 0
        self.slots[digest] = slot
        self.bytes += slot.size
        for tag in slot.tags:
            found = self.tagged.get(tag)
            if found is None:
                self.tagged[tag] = {digest}
            else:
                found.add(digest)
        gone = 0
        while len(self.slots) > self._most_entries or self.bytes > self._most_bytes:
            self.drop(next(iter(self.slots)))
            gone += 1
        return gone

    def drop(self, digest: str) -> None:
        slot = self.slots.pop(digest, None)
        if slot is None:
            return
        self.bytes -= slot.size
        for tag in slot.tags:
            found = self.tagged.get(tag)
            if found is not None:
                found.discard(digest)
                if not found:
                    del self.tagged[tag]

    def drop_touched(self, tag: str, seq: int) -> int:
        """Drop what has the tag and was read before `seq`; returns how many went."""
        touched = [digest for digest in self.tagged.get(tag, ()) if self.slots[digest].entry.seq < seq]
        for digest in touched:
            self.drop(digest)
        return len(touched)

    def clear(self) -> int:
        gone = len(self.slots)
        self.slots, self.tagged, self.bytes = OrderedDict(), {}, 0
        return gone


def reckoned(entry: Entry, tags: tuple[str, ...]) -> int:
    """The bytes that an entry takes here."""
    return _ENTRY_BYTES + len(entry.body) + _TAG_BYTES * len(tags)
