"""What a silo's keys in Redis are called. One hash slot: the scripts touch several of them at once."""

from __future__ import annotations


class Names:
    """The names of one silo."""

    def __init__(self, silo: str) -> None:
        self._prefix = f"silogate:{{{silo}}}:"
        self.state = self._prefix + "state"
        self.tags = self._prefix + "tags"
        # In the order in which the scripts take them; each takes as many as it needs.
        self.of_scripts = [self._prefix + name for name in ("state", "tags", "floor", "samples", "feed", "epochs")]

    def entries_of(self, epoch: str) -> str:
        """What the keys of an epoch's entries begin with."""
        return f"{self._prefix}lk:{epoch}:"

    def entry(self, epoch: str, digest: str) -> bytes:
        """Where the entry of a question lies."""
        return (self.entries_of(epoch) + digest).encode()
