"""`silogate cache warm`: asks a lookup for many keys before a rush, so that the first resident finds them kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from cache.definition import IndexTag, quoted
from cache.group import Group
from cache.joined import JoinedLookup
from cache.loader import SiloUnavailable
from cache.metrics import CacheMetrics
from gateway.asking import SiloParts, asking
from gateway.assembly import Assembly
from gateway.commands.lookups import lookups_of, the_lookup
from gateway.commands.opening import opened
from gateway.console import as_json, bar, fail, say
from gateway.lookup import Lookup
from gateway.problems import Problem
from gateway.settings import Settings

_AT_ONCE = 64
_FILLS_TIMEOUT_S = 5.0
_QUERY_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Warmed:
    """What became of the questions: found kept, kept now, answered and not kept (and why), not answered."""

    asked: int
    hit: int = 0
    kept: int = 0
    not_kept: int = 0
    failed: int = 0


async def warm(settings: Settings, name: str, *, keys: Path | None, limit: int, json: bool) -> int:
    """Ask one lookup for many keys; 0 when the answer to each is kept now."""
    async with opened(settings, command="cache warm") as assembly:
        declared = the_lookup(lookups_of(assembly.folders), name)
        if declared.over_cases:
            fail(f"{name} is asked of the gateway's own cases and never kept: there is nothing to warm", code=2)
        if declared.personal:
            fail(f"{name} is personal: each question leaves an audit row, so it is asked only for a person", code=2)
        metrics = CacheMetrics(CollectorRegistry())
        async with asking(assembly, metrics) as lookups:
            lookup = Lookup(declared, lookups.groups[name], assembly.ring.hmac)
            asked = list(islice(_from_file(lookup, keys), limit)) if keys else await _of_silo(assembly, lookup, limit)
            asker = lookups.groups[name]
            # Of a joined lookup only the silo's part is kept.
            group = asker.group if isinstance(asker, JoinedLookup) else asker
            assert isinstance(group, Group)  # noqa: S101 - a lookup over cases was refused above
            parts = lookups.silos[declared.definition.silo]
            warmed = await _ask_all(group, parts, asked, metrics, settings.lookup_timeout, shown=not json)
    if json:
        as_json({"lookup": name, **asdict(warmed)})
    else:
        say(
            f"{name}: {warmed.asked:,} questions asked: {warmed.hit:,} were kept already, {warmed.kept:,} are now, "
            f"{warmed.not_kept:,} were answered and not kept, {warmed.failed:,} were not answered"
        )
    return 1 if warmed.failed or warmed.not_kept else 0


async def _ask_all(
    group: Group,
    parts: SiloParts,
    asked: list[dict[str, object]],
    metrics: CacheMetrics,
    timeout_s: float,
    *,
    shown: bool,
) -> Warmed:
    warmed = Warmed(len(asked))
    waiting = iter(asked)

    async def work() -> None:
        for parameters in waiting:
            try:
                answer = await group.answer(parameters, timeout_s=timeout_s)
                warmed.hit += answer.source == "hit"
                warmed.not_kept += answer.source != "hit"
            except SiloUnavailable:
                warmed.failed += 1
            advance(1)

    async with asyncio.TaskGroup() as background:
        running = [background.create_task(parts.silo.run()), background.create_task(parts.store.run())]
        with bar(group.definition.name, total=len(asked), shown=shown) as advance:
            async with asyncio.TaskGroup() as workers:
                for _ in range(_AT_ONCE):
                    workers.create_task(work())
        warmed.kept = min(await _kept(metrics, warmed.not_kept), warmed.not_kept)
        warmed.not_kept -= warmed.kept
        for task in running:
            task.cancel()
    return warmed


async def _kept(metrics: CacheMetrics, offered: int) -> int:
    """How many new answers Redis has taken, or had newer, once it has been offered all of them or time is up."""
    deadline = asyncio.get_running_loop().time() + _FILLS_TIMEOUT_S
    while True:
        samples = [one for metric in metrics.fills.collect() for one in metric.samples if one.name.endswith("_total")]
        taken = sum(one.value for one in samples if one.labels["outcome"] in {"stored", "kept"})
        if sum(one.value for one in samples) >= offered or asyncio.get_running_loop().time() > deadline:
            return int(taken)
        await asyncio.sleep(0.02)


async def _of_silo(assembly: Assembly, lookup: Lookup, limit: int) -> list[dict[str, object]]:
    """Every value of the one index that the lookup asks by."""
    declared = lookup.declaration
    definition = declared.definition
    rules = [(table, rule) for table, rule in definition.tags.items() if isinstance(rule, IndexTag)]
    for table, rule in rules:
        index = assembly.taggers[definition.silo].indexes[table][rule.index]
        if index.kind == "value" and set(rule.parameters) == set(definition.parameters):
            break
    else:
        fail(f"{declared.name}: no index holds all its parameters; name the keys with --keys FILE", code=2)
    columns = ", ".join(map(quoted, index.columns))
    schema = quoted(f"silo_{definition.silo}")
    sql = f"select distinct {columns} from {schema}.{quoted(table)} order by 1 limit $1"  # noqa: S608 - declared names, quoted
    rows = await assembly.pool.fetch(sql, limit, timeout=_QUERY_TIMEOUT_S)
    found = []
    for row in rows:
        try:
            found.append(lookup.parameters_of(dict(zip(rule.parameters, row.values(), strict=True))))
        except Problem:
            continue  # a row that no question can name
    return found


def _from_file(lookup: Lookup, path: Path) -> Iterator[dict[str, object]]:
    """One question a line: a JSON object, or the bare value where there is one parameter."""
    names = list(lookup.declaration.parameters)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        try:
            given: Any = orjson.loads(text) if text.startswith("{") else {names[0]: text}
            yield lookup.parameters_of(given)
        except orjson.JSONDecodeError:
            fail(f"{path}:{number}: is not a JSON object", code=2)
        except Problem as problem:
            fail(f"{path}:{number}: {problem.field}: {problem.detail}", code=2)
