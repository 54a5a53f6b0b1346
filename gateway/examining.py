"""Tries the declared lookups on their silos: for `silogate check`, and in the background of `silogate serve`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from cache.cases import SILO as CASES
from cache.definition import LookupDefinition
from cache.examine.examine import Examined, examine
from cache.group import Group
from cache.joined import JoinedLookup
from cache.metrics import CacheMetrics
from cache.silo import Silo
from cache.values import Malformed, Tagger
from gateway.context import Asker
from gateway.declarations import LookupDeclaration
from gateway.settings import Settings
from streams.outages import DATABASE_ERRORS

_T = TypeVar("_T")

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
# One lookup, with all its statements.
_EXAMINE_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 2.0
_AGAIN_AFTER_S = 30.0
# What fails is tried less and less often: an examination is work for the database.
_MOST_PAUSE_S = 3600.0
_LOAD_SQL = "select max(id) from load where completed is not null"


class TooSlow(Exception):
    """An examination did not end in its time; its connection is gone."""


@asynccontextmanager
async def lookup_connection(settings: Settings, silo: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as lookups have it, to the first replica that can be reached, or else to the primary.

    The gateway's own cases are read on the primary, by the gateway's role. Raises what the driver does, which is a
    TimeoutError too.
    """
    primary = settings.database_url.get_secret_value()
    urls = [primary] if silo == CASES else list(dict.fromkeys((*settings.replicas, primary)))
    session = {
        "application_name": f"silogate check of {silo}",
        "search_path": "gateway" if silo == CASES else f"silo_{silo}",
        # as the lookups' own pools have it
        "statement_timeout": str(int(settings.lookup_timeout * 1000 / 3)),
        "default_transaction_read_only": "on",
        "jit": "off",
    }
    if silo != CASES:
        session["role"] = settings.lookup_role
    connection = await _first(urls, session)
    try:
        yield connection
    finally:
        # What hangs is cut off: nothing was written.
        try:
            await connection.close(timeout=_CLOSE_TIMEOUT_S)
        except DATABASE_ERRORS:
            connection.terminate()


async def _first(urls: Sequence[str], session: Mapping[str, str]) -> asyncpg.Connection:
    for url in urls[:-1]:
        try:
            return await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, server_settings=dict(session))
        except DATABASE_ERRORS:
            continue
    return await asyncpg.connect(urls[-1], timeout=_CONNECT_TIMEOUT_S, server_settings=dict(session))


async def examine_lookup(
    connection: asyncpg.Connection,
    declared: LookupDeclaration,
    definition: LookupDefinition,
    tagger: Tagger | None,
    *,
    functions: bool = True,
) -> Examined:
    """Examine one SQL of a declared lookup, with its examples among the keys; raises TooSlow or the driver's errors."""
    examples: dict[str, object] = {}
    for name, parameter in declared.parameters.items():
        try:
            examples[name] = parameter.type.normalise(parameter.example)
        except Malformed:
            continue
    optional = frozenset(name for name, one in declared.parameters.items() if not one.required)
    return await _in_time(
        connection,
        examine(connection, definition, tagger, examples=examples, optional=optional, functions=functions),
        _EXAMINE_TIMEOUT_S,
    )


async def _in_time(connection: asyncpg.Connection, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
    """Do the work on the connection; raises TooSlow at the deadline. There, and when cancelled, the connection is cut.

    It is cut before the work is cancelled: the driver would else wait for its request to cancel the query, and an open
    transaction for its ROLLBACK, for as long as the server hangs.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise TooSlow
        return task.result()
    finally:
        if not task.done():
            connection.terminate()
            task.cancel()
            await asyncio.wait({task})
        # It is either told of above, or what comes of the cut.
        if not task.cancelled():
            task.exception()


async def run_examinations(
    settings: Settings,
    lookups: Iterable[LookupDeclaration],
    askers: Mapping[str, Asker],
    silos: Mapping[str, Silo],
    metrics: CacheMetrics,
) -> None:
    """Find out for each lookup whether it may be batched: once its silo is there, and after each load. Until cancelled.

    A lookup that was not examined yet is batched; one whose examination fails stays as it was, and is tried again.
    """
    of_silo: dict[str, list[tuple[LookupDeclaration, Group]]] = {name: [] for name in silos}
    for declared in lookups:
        asker = askers[declared.name]
        group = asker.group if isinstance(asker, JoinedLookup) else asker
        if isinstance(group, Group):
            of_silo[declared.definition.silo].append((declared, group))
            metrics.batched.labels(declared.name).set(1)
    async with asyncio.TaskGroup() as tasks:
        for name, groups in of_silo.items():
            if groups:
                examinations = _Examinations(settings, silos[name], groups, metrics)
                tasks.create_task(examinations.run(), name=f"examinations of {name}")


class _Examinations:
    """The lookups of one silo, and at which load each was examined last."""

    def __init__(
        self,
        settings: Settings,
        silo: Silo,
        groups: Sequence[tuple[LookupDeclaration, Group]],
        metrics: CacheMetrics,
    ) -> None:
        self._settings = settings
        self._silo = silo
        self._groups = groups
        self._metrics = metrics
        self._examined: dict[str, int] = {}

    @property
    def _load_id(self) -> int | None:
        standing = self._silo.standing
        return None if standing is None else standing.load_id

    def _due(self, load_id: int) -> list[tuple[LookupDeclaration, Group]]:
        return [one for one in self._groups if self._examined.get(one[0].name) != load_id]

    async def run(self) -> None:
        pause, tried, again_at = _AGAIN_AFTER_S, None, 0.0
        while True:
            load_id = self._load_id
            rests = load_id == tried and time.monotonic() < again_at
            if load_id is None or rests or not self._due(load_id):
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            sound = await self._examine(load_id)
            tried, again_at = load_id, time.monotonic() + pause
            pause = _AGAIN_AFTER_S if sound else min(pause * 2, _MOST_PAUSE_S)

    async def _examine(self, load_id: int) -> bool:
        """Examine what is due; False if a part of it failed, which is logged."""
        waiting, sound = self._due(load_id), True
        try:
            while waiting:
                # What fails may leave anything behind in its session, so the next has another one.
                async with lookup_connection(self._settings, self._silo.name) as connection:
                    sound = await self._examine_on(connection, waiting, load_id) and sound
        # It only chooses between two right ways of asking: no fault in it may end a process that answers.
        except Exception as error:  # noqa: BLE001
            _log.warning("lookups_not_examined", extra={"silo": self._silo.name, "error": type(error).__name__})
            return False
        return sound

    async def _examine_on(
        self, connection: asyncpg.Connection, waiting: list[tuple[LookupDeclaration, Group]], load_id: int
    ) -> bool:
        """Take and examine one after the other, until one fails: False. A server may be at an earlier load yet."""
        seen = await _in_time(connection, connection.fetchval(_LOAD_SQL), _CONNECT_TIMEOUT_S)
        while waiting:
            declared, group = waiting.pop(0)
            if seen is None or self._examined.get(declared.name) == seen:
                continue
            try:
                await _decide(connection, declared, group, self._silo.tagger, self._metrics)
            # As above, and one lookup's fault keeps no other from being examined.
            except Exception as error:  # noqa: BLE001
                _log.warning("lookup_not_examined", extra={"lookup": declared.name, "error": type(error).__name__})
                return False
            self._examined[declared.name] = min(seen, load_id)
        return True


async def _decide(
    connection: asyncpg.Connection, declared: LookupDeclaration, group: Group, tagger: Tagger, metrics: CacheMetrics
) -> None:
    # Functions and names are the command's matter: their check fills the server's log.
    found = await examine_lookup(connection, declared, group.definition, tagger, functions=False)
    if not found.sampled:
        return
    if group.batched and not found.batched:
        codes = [finding.code for finding in found.findings if finding.level != "note"]
        _log.warning("lookup_not_batched", extra={"lookup": declared.name, "why": codes})
    elif found.batched and not group.batched:
        _log.info("lookup_batched_again", extra={"lookup": declared.name})
    group.batched = found.batched
    metrics.batched.labels(declared.name).set(int(found.batched))
