"""`silogate lookups list` and `describe`: which questions are declared, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.table import Table

from cache.definition import CircleTag, LookupDefinition, TableTag
from gateway.console import as_json, as_table, fail, say, shown_seconds
from gateway.declarations import LookupDeclaration
from gateway.integrations import Folders, read_folders
from gateway.settings import Settings


def show_list(settings: Settings, *, json: bool) -> None:
    """Print one line a lookup."""
    rows = [_row(one) for one in _declared(settings).values()]
    if json:
        as_json(rows)
        return
    table = Table("lookup", "silo", "asked by", "shape", "fresh for", "personal", "title", box=None, pad_edge=False)
    for row in rows:
        fresh = "never cached" if row["ttl_s"] == 0 else shown_seconds(row["ttl_s"])
        asked = ", ".join(row["parameters"])
        table.add_row(
            row["lookup"], row["silo"], asked, row["shape"], fresh, "yes" if row["personal"] else "", row["title"]
        )
    as_table(table)


def describe(settings: Settings, name: str, *, json: bool) -> None:
    """Print everything that is declared of one lookup, and how to ask it."""
    declared = the_lookup(_declared(settings), name)
    definition = declared.definition
    found = _row(declared) | {
        "scope": declared.scope,
        "columns": list(definition.columns),
        "touched_by": touched_by(definition),
        "soft_ttl_s": definition.soft_ttl_s,
        "negative_ttl_s": definition.negative_ttl_s,
        "stale_for_s": definition.stale_for_s,
        "max_age_s": definition.max_age_s,
        "cache_control": declared.cache_control,
        "ask": _how_to_ask(declared),
        "sql": definition.sql,
    }
    if json:
        as_json(found)
        return
    say(f"{declared.name}: {declared.title}\n")
    for label, text in _described(declared):
        say(f"  {label:<13}{text}")
    say(f"\n{definition.sql.strip()}\n\n{found['ask']}")


def _described(declared: LookupDeclaration) -> Sequence[tuple[str, str]]:
    definition = declared.definition
    lines = [("silo", definition.silo), ("shape", definition.shape), ("columns", ", ".join(definition.columns))]
    lines += [
        ("parameter", f"{name}: {one.type.name}, {one.title}{'' if one.required else ' (optional)'}")
        for name, one in declared.parameters.items()
    ]
    lines += [("touched by", text) for text in touched_by(definition)]
    if not declared.over_cases:
        ttl, soft, negative, stale = map(
            shown_seconds,
            (definition.ttl_s, definition.soft_ttl_s, definition.negative_ttl_s, definition.stale_for_s),
        )
        lines.append(("kept", f"{ttl}, renewed after {soft}; an absence {negative}; {stale} more without the silo"))
    return [*lines, ("scope", declared.scope), ("clients", declared.cache_control)]


# What is declared


def _declared(settings: Settings) -> dict[str, LookupDeclaration]:
    folders = read_folders(settings.integrations, settings.silos)
    if folders.problems:
        fail(*(str(problem) for problem in folders.problems))
    return lookups_of(folders)


def lookups_of(folders: Folders) -> dict[str, LookupDeclaration]:
    """Every declared lookup by its name."""
    return {lookup.name: lookup for one in folders.integrations for lookup in one.lookups}


def the_lookup(declared: Mapping[str, LookupDeclaration], name: str) -> LookupDeclaration:
    """The one of that name; says which there are and leaves when there is none."""
    if name not in declared:
        fail(f"there is no lookup {name}; there are: {', '.join(sorted(declared))}", code=2)
    return declared[name]


def _row(declared: LookupDeclaration) -> dict[str, Any]:
    definition = declared.definition
    return {
        "lookup": declared.name,
        "title": declared.title,
        "silo": definition.silo,
        "parameters": {name: one.type.name for name, one in declared.parameters.items()},
        "shape": definition.shape,
        "ttl_s": definition.ttl_s,
        "personal": declared.personal,
    }


def _how_to_ask(declared: LookupDeclaration) -> str:
    examples = {name: one.example for name, one in declared.parameters.items()}
    if declared.personal:
        body = orjson.dumps(examples, default=str).decode()
        return f"echo '{body}' | silogate lookups try {declared.name} -"
    return f"silogate lookups try {declared.name} " + " ".join(f"'{name}={one}'" for name, one in examples.items())


def touched_by(definition: LookupDefinition) -> list[str]:
    """Say in words which changes make an answer be asked anew."""
    found = []
    for table, rule in definition.tags.items():
        if isinstance(rule, TableTag):
            found.append(f"any change to {table}")
        elif isinstance(rule, CircleTag):
            found.append(f"a change to a row of {table} in the square kilometres within :{rule.metres} of the point")
        else:
            asked = ", ".join(f":{name}" for name in rule.parameters)
            found.append(f"a change to a row of {table} whose index {rule.index} is {asked}")
    return found
