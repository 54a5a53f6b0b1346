"""Writes one batch inside its caller's transaction: in one statement, or around the rows that are refused."""

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from streams.errors import Rejected, Retryable
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


class Push:
    """One attempt at one batch. `choice` is changed to what was really written and refused."""

    def __init__(
        self, connection: asyncpg.Connection, statements: Statements, choice: Choice, map_event: MapEvent
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._choice = choice
        self._map_event = map_event
        self._group_s: float | None = None

    async def at_once(self) -> Held:
        """Everything, or the database's error; nothing in `choice` is changed by an error."""
        held = await self._rows(self._choice.candidates)
        await self._echoes(self._choice.echoes)
        return await self._completed(held)

    async def one_by_one(self, group_s: float | None = None) -> Held:
        """Everything that the recipient takes: what it refuses is found by halving, and named.

        `group_s`: how long a statement over several rows may take here; without it as long as any other.
        """
        self._group_s = group_s
        candidates, self._choice.candidates = self._choice.candidates, []
        held = await self._halved(candidates)
        for echo in list(self._choice.echoes):
            try:
                async with self._connection.transaction():
                    await self._echoes([echo])
            except _ERRORS as error:
                fault = of_row(error)
                if fault is None:
                    raise
                # the recipient has these values already: that it will not note our version harms nothing
                if isinstance(fault, Retryable):
                    self._choice.echoes.remove(echo)
                    self._choice.refuse(echo, fault)
        return await self._completed(held)

    async def _halved(self, candidates: Sequence[Candidate]) -> Held:
        if not candidates:
            return {}
        if len(candidates) == 1:
            return await self._one(candidates[0])
        middle = len(candidates) // 2
        held: Held = {}
        for half in (candidates[:middle], candidates[middle:]):
            try:
                async with self._connection.transaction():
                    written = await self._quickly(half)
            except _ERRORS as error:
                if of_row(error) is None:
                    raise
                held |= await self._halved(half)
            else:
                held |= written
                self._choice.candidates.extend(half)
        return held

    async def _one(self, candidate: Candidate) -> Held:
        """One case: its chosen event, or the newest older one that the recipient takes."""
        left: Candidate | None = candidate
        while left is not None:
            try:
                async with self._connection.transaction():
                    held = await self._rows([left])
            except _ERRORS as error:
                fault = of_row(error)
                if fault is None:
                    raise
                self._choice.refuse(left.event, fault)
                if is_too_slow(error):
                    # an older event would wait for the same row as long again
                    for event in left.older:
                        self._choice.refuse(event, Retryable(fault.reason))
                    return {}
                left = self._choice.choose(left.older, self._map_event)
            else:
                self._choice.candidates.append(left)
                return held
        return {}

    async def _quickly(self, candidates: Sequence[Candidate]) -> Held:
        if self._group_s is None or len(candidates) == 1:
            return await self._rows(candidates)
        usual = await self._connection.fetchval("select current_setting('statement_timeout')")
        await self._connection.execute(_LIMIT, f"{round(self._group_s * 1000)}ms")
        held = await self._rows(candidates)
        # an error needs no such line: it takes the setting back together with the rows
        await self._connection.execute(_LIMIT, usual)
        return held

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
