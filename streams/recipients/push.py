"""Writes one batch inside its caller's transaction: in one statement, or around the rows that are refused."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from streams.errors import Rejected, Retryable, Untried
from streams.events import CaseEvent
from streams.recipients.candidates import Candidate, Choice, MapEvent, columns_of
from streams.recipients.refusals import is_too_slow, of_row
from streams.recipients.tables import Statements


class Row(NamedTuple):
    """What the recipient holds for one of our references once the transaction has committed."""

    id: str
    version: int
    written: bool


Held = dict[str, Row]

# What a refused row raises: about the row, not about the connection.
_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)

_LIMIT = "select set_config('statement_timeout', $1, true)"
_LEAST_GROUP_S = 0.1
_NO_TURN = "other rows of its batch took too long"


class Patience(NamedTuple):
    """How long a search for refused rows may take in all, and a group of them once one was too slow."""

    search_s: float
    group_s: float


class Push:
    """One attempt at one batch. `choice` is changed to what was really written and refused."""

    def __init__(
        self, connection: asyncpg.Connection, statements: Statements, choice: Choice, map_event: MapEvent
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._choice = choice
        self._map_event = map_event
        self._patience = Patience(0, 0)
        self._until = 0.0
        self._whole = 1
        self._is_slow = False
        self._usual: str | None = None

    async def at_once(self) -> Held:
        """Everything, or the database's error; nothing in `choice` is changed by an error."""
        held = await self._rows(self._choice.candidates)
        await self._echoes(self._choice.echoes)
        return await self._completed(held)

    async def one_by_one(self, patience: Patience, *, is_slow: bool) -> Held:
        """Everything that the recipient takes: what it refuses is found by halving, and named.

        It begins nothing more after `patience.search_s`: what was not tried by then is Untried. Once a statement was
        too slow (`is_slow`: one was already), groups get only their share of `patience.group_s` and a single row all
        of it: a row that needs longer is named, and gets its full time when it is tried alone.
        """
        self._patience, self._is_slow = patience, is_slow
        self._until = time.monotonic() + patience.search_s
        candidates, self._choice.candidates = self._choice.candidates, []
        self._whole = max(1, len(candidates))
        held = await self._halved(candidates)
        for echo in list(self._choice.echoes):
            await self._echo_alone(echo)
        return await self._completed(held)

    async def _echo_alone(self, echo: CaseEvent) -> None:
        if self._is_over:
            self._drop(echo, Untried(_NO_TURN))
            return
        try:
            async with self._connection.transaction():
                await self._limit(1)
                await self._echoes([echo])
                await self._unlimit()
        except _ERRORS as error:
            fault = of_row(error)
            if fault is None:
                raise
            self._is_slow = self._is_slow or is_too_slow(error)
            # the recipient has these values already: that it will not note our version harms nothing
            if isinstance(fault, Retryable):
                self._drop(echo, fault)

    def _drop(self, echo: CaseEvent, error: Retryable) -> None:
        self._choice.echoes.remove(echo)
        self._choice.refuse(echo, error)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._until

    async def _halved(self, candidates: Sequence[Candidate]) -> Held:
        if not candidates:
            return {}
        if self._is_over:
            for candidate in candidates:
                self._hold_back(candidate, Untried(_NO_TURN))
            return {}
        if len(candidates) == 1:
            return await self._one(candidates[0])
        middle = len(candidates) // 2
        held: Held = {}
        for half in (candidates[:middle], candidates[middle:]):
            if self._is_over or len(half) == 1:
                held |= await self._halved(half)
                continue
            try:
                async with self._connection.transaction():
                    written = await self._quickly(half)
            except _ERRORS as error:
                if of_row(error) is None:
                    raise
                self._is_slow = self._is_slow or is_too_slow(error)
                held |= await self._halved(half)
            else:
                held |= written
                self._choice.candidates.extend(half)
        return held

    def _hold_back(self, candidate: Candidate, error: Retryable) -> None:
        """Names every event of the case that might have been written."""
        self._choice.refuse(candidate.event, error)
        for event in candidate.older:
            self._choice.refuse(event, type(error)(error.reason))

    async def _one(self, candidate: Candidate) -> Held:
        """One case: its chosen event, or the newest older one that the recipient takes."""
        left: Candidate | None = candidate
        while left is not None:
            try:
                async with self._connection.transaction():
                    held = await self._quickly([left])
            except _ERRORS as error:
                fault = of_row(error)
                if fault is None:
                    raise
                if isinstance(fault, Retryable):
                    # an older event would wait for the same row as long again
                    self._is_slow = self._is_slow or is_too_slow(error)
                    self._hold_back(left, fault)
                    return {}
                self._choice.refuse(left.event, fault)
                left = self._choice.choose(left.older, self._map_event)
            else:
                self._choice.candidates.append(left)
                return held
        return {}

    async def _quickly(self, candidates: Sequence[Candidate]) -> Held:
        await self._limit(len(candidates))
        held = await self._rows(candidates)
        await self._unlimit()
        return held

    async def _limit(self, rows: int) -> None:
        """The time of the next statement. An error takes the setting back together with what the statement wrote."""
        if not self._is_slow:
            return
        if self._usual is None:
            self._usual = await self._connection.fetchval("select current_setting('statement_timeout')")
        group_s = self._patience.group_s
        if rows > 1:
            group_s = max(min(group_s, _LEAST_GROUP_S), group_s * rows / self._whole)
        await self._connection.execute(_LIMIT, f"{max(1, round(group_s * 1000))}ms")

    async def _unlimit(self) -> None:
        if self._usual is not None:
            await self._connection.execute(_LIMIT, self._usual)

    async def _rows(self, candidates: Sequence[Candidate]) -> Held:
        if not candidates:
            return {}
        parameters = columns_of(candidates, self._statements.columns)
        rows = await self._connection.fetch(self._statements.push, *parameters)
        return {row["key"]: Row(row["id"], row["version"], row["written"]) for row in rows}

    async def _echoes(self, echoes: Sequence[CaseEvent]) -> None:
        if echoes:
            references, versions = [echo.reference for echo in echoes], [echo.version for echo in echoes]
            await self._connection.execute(self._statements.echo, references, versions)

    async def _completed(self, held: Held) -> Held:
        """Adds rows that the statement's own snapshot was too old to see, and refuses what is not there at all."""
        missing = [one.event.reference for one in self._choice.candidates if one.event.reference not in held]
        if not missing:
            return held
        rows = await self._connection.fetch(self._statements.held, missing)
        held = held | {row["key"]: Row(row["id"], row["version"], written=False) for row in rows}
        for candidate in [one for one in self._choice.candidates if one.event.reference not in held]:
            self._choice.candidates.remove(candidate)
            self._choice.refuse(candidate.event, Rejected("the recipient's table did not keep the row"))
        return held
