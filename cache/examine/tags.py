"""Whether the declared tags cover what a lookup reads, which ones would, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator

from cache.definition import BELOW, CircleTag, IndexTag, LookupDefinition, TableTag, TagRule, rule_parameters
from cache.examine.finding import Finding
from cache.examine.plan import Plan
from cache.values import NAME_BUCKET, TILE_M, Index, Tagger


def check_tags_of(definition: LookupDefinition, tagger: Tagger, plan: Plan) -> Iterator[Finding]:
    """Compare the tags with the tables of the plan that serves every value."""
    read = tuple(dict.fromkeys(scan.table for scan in plan.scans))
    for table in read:
        if table not in tagger.indexes:
            yield Finding(
                "error",
                "unknown_table",
                f"reads {table}, which silo.yaml of {tagger.silo} does not declare: nothing says when it changes",
            )
        elif table not in definition.tags:
            line = yaml_line(table, derived(definition, tagger, plan, table))
            yield Finding(
                "error",
                "untagged_table",
                f"reads {table} and has no tag for it, so a change to it would not be seen. Add:  {line}",
                about="tags",
            )
        else:
            yield from _rule(definition, tagger, plan, table)
    for table in definition.tags:
        if table not in read:
            yield Finding(
                "warning",
                "unread_table",
                f"has a tag for {table}, which the SQL does not read: answers are dropped for nothing. Remove it",
                about="tags",
            )


def _rule(definition: LookupDefinition, tagger: Tagger, plan: Plan, table: str) -> Iterator[Finding]:
    rule, better = definition.tags[table], derived(definition, tagger, plan, table)
    if isinstance(rule, TableTag):
        if isinstance(better, TableTag):
            message = f"depends on the whole table {table}: any change to it drops every stored answer"
        else:
            message = f"drops every stored answer at any change to {table}; enough is:  {yaml_line(table, better)}"
        yield Finding("note", "whole_table_tag", message, about="tags")
    elif not fits(definition, tagger.indexes[table][rule.index], rule, plan, table):
        wanted = _condition(definition, tagger, table, rule)
        yield Finding(
            "error",
            "tag_too_narrow",
            f"the tag of {table} promises that only rows {which(tagger, table, rule)} matter, but the plan reads"
            f" {table} without a condition that says so for every row. Put {wanted}"
            f" where {table} is read, or declare:  {yaml_line(table, better)}",
            about="tags",
        )


def fits(definition: LookupDefinition, index: Index, rule: IndexTag | CircleTag, plan: Plan, table: str) -> bool:
    """True if every place that reads the table takes only rows that the rule's tags stand for."""
    place = {name: number for number, name in enumerate(definition.parameters, 1)}
    names = rule_parameters(rule)
    numbers = [place[name] for name in names]
    scans = plan.of(table)
    # With a parameter left out the group takes the table's tag.
    absent = frozenset(numbers)
    if isinstance(rule, CircleTag):
        return all(scan.is_near(index.columns, numbers, absent) for scan in scans)
    pairs = [
        (column, place[name], definition.parameters[name].postgres_type)
        for column, name in zip(index.columns, names, strict=True)
    ]
    exact, by_code_points = plan.collations.exact, plan.collations.by_code_points
    return all(
        (exact and all(scan.equals(*pair, absent) for pair in pairs))
        or (index.kind == "name" and by_code_points and scan.begins(index.columns[0], numbers[0], absent))
        for scan in scans
    )


def derived(definition: LookupDefinition, tagger: Tagger, plan: Plan, table: str) -> TagRule:
    """The narrowest rule that the plan shows to be right; the table's own when there is none."""
    for index in sorted(tagger.indexes[table].values(), key=lambda one: (one.kind != "value", -len(one.columns))):
        for rule in _candidates(definition, index):
            if fits(definition, index, rule, plan, table):
                return rule
    return TableTag()


def _candidates(definition: LookupDefinition, index: Index) -> Iterator[IndexTag | CircleTag]:
    of_type: dict[str, list[str]] = {}
    for name, kind in definition.parameters.items():
        of_type.setdefault(kind.name, []).append(name)
    if index.kind == "tile":
        points = [of_type.get(kind, []) for kind in ("easting", "northing", "metres")]
        if all(len(names) == 1 for names in points):
            yield CircleTag(index.name, points[0][0], points[1][0], points[2][0])
        return
    combinations: list[tuple[str, ...]] = [()]
    for kind_name in index.types:
        fitting = of_type.get(kind_name, []) + (of_type.get("prefix", []) if index.kind == "name" else [])
        combinations = [(*chosen, name) for chosen in combinations for name in fitting][:64]
    yield from (IndexTag(index.name, chosen) for chosen in combinations if len(set(chosen)) == len(chosen))


def yaml_line(table: str, rule: TagRule) -> str:
    """The rule as it is written under `tags:`."""
    if isinstance(rule, TableTag):
        return f"{table}: table"
    if isinstance(rule, IndexTag):
        return f"{table}: {{index: {rule.index}, from: [{', '.join(rule.parameters)}]}}"
    point = f"easting: {rule.easting}, northing: {rule.northing}, metres: {rule.metres}"
    return f"{table}: {{circle: {rule.index}, {point}}}"


def explained_tags(definition: LookupDefinition, tagger: Tagger, optional: frozenset[str]) -> Iterator[str]:
    """Which changes touch an answer, a sentence a table."""
    for table, rule in definition.tags.items():
        if isinstance(rule, TableTag):
            yield f"any change to {table}"
            continue
        names = (rule.easting, rule.northing, rule.metres) if isinstance(rule, CircleTag) else rule.parameters
        left_out = [name for name in names if name in optional]
        more = f"; any change to {table} when {' or '.join(left_out)} is left out" if left_out else ""
        yield f"a change to a row of {table} {which(tagger, table, rule)}{more}"


def which(tagger: Tagger, table: str, rule: IndexTag | CircleTag) -> str:
    """Which rows the rule's tags stand for, as the end of a sentence."""
    if isinstance(rule, CircleTag):
        return f"within {rule.metres} of this point (whole tiles of {TILE_M / 1000:g} km)"
    columns = tagger.indexes[table][rule.index].columns
    if tagger.indexes[table][rule.index].kind == "name":
        return f"whose {columns[0]} begins with the same {NAME_BUCKET} letters"
    return f"with this {' and '.join(columns)}"


def _condition(definition: LookupDefinition, tagger: Tagger, table: str, rule: IndexTag | CircleTag) -> str:
    """The condition that the rule stands on, as it is written in SQL."""
    index = tagger.indexes[table][rule.index]
    pairs = list(zip(index.columns, rule_parameters(rule), strict=False))
    if isinstance(rule, CircleTag):
        total = " + ".join(f"({column} - :{name}) ^ 2" for column, name in pairs)
        return f"`{total} <= :{rule.metres} ^ 2` (a box reaches beyond the circle)"
    column, name = pairs[0]
    if index.kind == "name" and definition.parameters[name].name == "prefix":
        return f'`{column} collate "C" >= :{name} and {column} collate "C" < :{name}{BELOW}`'
    return f"`{' and '.join(f'{column} = :{name}' for column, name in pairs)}`"
