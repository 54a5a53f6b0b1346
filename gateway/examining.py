"""Tries the declared lookups on their silos: for `silogate check`, and in the background of `silogate serve`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

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

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
# One lookup, with all its statements.
_EXAMINE_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 2.0
_AGAIN_AFTER_S = 30.0


@asynccontextmanager
async def lookup_connection(settings: Settings, silo: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as lookups have it, to the first replica that can be reached, or else to the primary.

    The gateway's own cases are read on the primary, by the gateway's role. Raises what the driver does.
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
    """Examine one SQL of a declared lookup, with its examples among the keys; raises TimeoutError or the driver's."""
    examples: dict[str, object] = {}
    for name, parameter in declared.parameters.items():
        try:
            examples[name] = parameter.type.normalise(parameter.example)
        except Malformed:
            continue
    optional = frozenset(name for name, one in declared.parameters.items() if not one.required)
    async with asyncio.timeout(_EXAMINE_TIMEOUT_S):
        return await examine(connection, definition, tagger, examples=examples, optional=optional, functions=functions)


async def run_examinations(
    settings: Settings,
    lookups: Iterable[LookupDeclaration],
    askers: Mapping[str, Asker],
    silos: Mapping[str, Silo],
    metrics: CacheMetrics,
) -> None:
    """Find out for each lookup whether it may be batched: once its silo is there, and after each load. Until cancelled.

    A lookup that was not examined yet is batched; one whose examination fails stays as it was.
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
                tasks.create_task(_follow(settings, silos[name], groups, metrics), name=f"examinations of {name}")


async def _follow(
    settings: Settings, silo: Silo, groups: Sequence[tuple[LookupDeclaration, Group]], metrics: CacheMetrics
) -> None:
    examined: int | None = None
    while True:
        standing = silo.standing
        if standing is None or standing.load_id is None or standing.load_id == examined:
            await asyncio.sleep(_LOOK_EVERY_S)
            continue
        load_id = standing.load_id
        try:
            async with lookup_connection(settings, silo.name) as connection:
                for declared, group in groups:
                    await _decide(connection, declared, group, silo.tagger, metrics)
            examined = load_id
        # It only chooses between two right ways of asking: no fault in it may end a process that answers.
        except Exception as error:  # noqa: BLE001
            _log.warning("lookups_not_examined", extra={"silo": silo.name, "error": type(error).__name__})
            await asyncio.sleep(_AGAIN_AFTER_S)


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
