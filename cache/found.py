"""What was found for a question, before there is a verdict on it. Nobody changes one."""

from __future__ import annotations

from dataclasses import dataclass

from cache.answer import Source
from cache.entry import Entry
from cache.loaded import Loaded
from cache.question import Question
from cache.state import State


@dataclass(slots=True)
class Found:
    """An answer before its verdict: what it is, the position it holds for, and how new that is known to be.

    `measured` tells a time read from the primary from one that is only the replica's word. Nobody changes one.
    """

    body: bytes
    negative: bool
    etag: int
    epoch: str
    seq: int
    as_of_ms: float
    age_ms: float
    measured: bool
    source: Source


@dataclass(slots=True)
class Kept:
    """A valid entry, with the state that it was validated against."""

    entry: Entry
    state: State


@dataclass(slots=True)
class Looked:
    """What Redis had for a question: the silo's state, if this process may use the cache, and a valid entry.

    There is no entry without a state. `started` is by `time.perf_counter`. `loaded` is what the silo had to say, if it
    was asked already.
    """

    question: Question
    started: float
    state: State | None = None
    entry: Entry | None = None
    loaded: Loaded | Exception | None = None

    @property
    def source(self) -> Source:
        """What an answer of the silo is to this question."""
        return "bypass" if self.state is None else "miss"
