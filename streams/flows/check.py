"""What is wrong with a flow, seen beside the case type, the recipients, the sinks and the templates it names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

from streams.declared import Location, Problem
from streams.flow import Deliver, Effect, Flow
from streams.flows.loops import loops
from streams.sinks.notifications.lint import check_template

# More branches than anyone can follow by eye; a flow over it is checked on the first ones only.
_MOST_BRANCHES = 10_000


def check_flow(
    flow: Flow,
    *,
    case_type: str,
    case_schema: Mapping[str, Any],
    recipients: Collection[str],
    sinks: Collection[str],
    templates: Path,
) -> list[Problem]:
    """Return every problem of a flow and of its templates, each with file, line and field."""
    problems = [] if flow.case_type == case_type else [_unknown(flow, ("case_type",), flow.case_type, [case_type])]
    for index, deliver in enumerate(flow.deliver):
        if deliver.to not in recipients:
            problems.append(_unknown(flow, ("deliver", index, "to"), deliver.to, recipients))
        problems.extend(_conditions(flow, ("deliver", index), deliver, case_schema))
    for index, effect in enumerate(flow.effect_rules):
        problems.extend(_effect(flow, ("effects", index), effect, case_schema, sinks))
        problems.extend(_conditions(flow, ("effects", index), effect, case_schema))
    problems.extend(what_follows(flow, case_schema))
    return problems or [*_holes(flow, case_schema), *loops(flow), *_templates(flow, case_schema, templates)]


def _unknown(flow: Flow, location: Location, name: str, known: Collection[str]) -> Problem:
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {near[0]}?" if near else "known are " + (", ".join(sorted(known)) or "none")
    return flow.source.problem(location, f"{name} is not known here; {hint}")


def field_schema(schema: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """Return what a case's schema says about one field, or None when it has no such field."""
    below: Mapping[str, Any] = schema
    for name in path.split("."):
        found = below.get("properties", {}).get(name)
        if not isinstance(found, Mapping):
            return None
        below = found
    return below


def _conditions(flow: Flow, place: Location, rule: Deliver | Effect, schema: Mapping[str, Any]) -> Iterator[Problem]:
    for path, condition in rule.when.items():
        here = (*place, "when", path)
        found = field_schema(schema, path)
        if found is None:
            yield flow.source.problem(here, "is not a field of the case type")
            continue
        choices = _allowed(found)
        for value in condition.values if choices else ():
            if value not in choices:
                near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                yield flow.source.problem(here, f"{value} is not a value that the case type allows{hint}")


def _effect(
    flow: Flow, place: Location, rule: Effect, schema: Mapping[str, Any], sinks: Collection[str]
) -> Iterator[Problem]:
    if rule.sink not in sinks:
        yield _unknown(flow, (*place, "sink"), rule.sink, sinks)
    target = field_schema(schema, rule.to)
    if target is None or target.get("type") != "string":
        yield flow.source.problem((*place, "to"), f"{rule.to} is not a text field of the case type")
    elif not _always_there(rule, schema):
        message = f"a case may lack {rule.to}; add `{rule.to}: {{present: true}}` to `when`"
        yield flow.source.problem((*place, "to"), message)


def what_follows(flow: Flow, schema: Mapping[str, Any]) -> Iterator[Problem]:
    """Find effects that do not say what follows, or say what cannot be done, and those that nothing ever plans."""
    planned = {
        branch.plan for rule in flow.effect_rules if rule.then for branch in rule.then.branches.values() if branch.plan
    }
    for index, rule in enumerate(flow.effect_rules):
        place = ("effects", index)
        if not rule.on and rule.purpose not in planned:
            yield flow.source.problem((*place, "purpose"), "is planned by nothing: add `on`, or `plan` it elsewhere")
        if rule.then is None:
            message = "needs `then`: what follows done, failed and unknown; nothing is `{end: true}`"
            yield flow.source.problem((*place, "purpose"), message)
            continue
        for outcome, branch in rule.then.branches.items():
            here = (*place, "then", outcome)
            if branch.plan and flow.planned_by(branch.plan) is None:
                yield _unknown(flow, (*here, "plan"), branch.plan, [one.purpose for one in flow.effect_rules])
            for path, value in (branch.set or {}).items():
                if wrong := _unsettable(schema, path, value):
                    yield flow.source.problem((*here, "set", path), wrong)


def _unsettable(schema: Mapping[str, Any], path: str, value: object) -> str | None:
    found = field_schema(schema, path)
    if found is None:
        return "is not a field of the case type"
    names = path.split(".")
    if any(
        (field_schema(schema, ".".join(names[:depth])) or {}).get("x-immutable") for depth in range(1, len(names) + 1)
    ):
        return "never changes once the case is there"
    choices = _allowed(found)
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
        return f"{value} is not a value that the case type allows" + (f"; did you mean {near[0]}?" if near else "")
    kinds: Mapping[str, tuple[type, ...]]
    kinds = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
    kind = found.get("type")
    if isinstance(kind, str) and kind in kinds:
        fits = isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))
        return None if fits else f"{value} is not a {kind}"
    return None if choices else "is not a single value of the case"


def _always_there(rule: Effect, schema: Mapping[str, Any]) -> bool:
    condition = rule.when.get(rule.to)
    asked = condition is not None and condition.present is not False and condition.not_in is None
    return asked or _required(schema, rule.to)


def _templates(flow: Flow, schema: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    for index, rule in enumerate(flow.effect_rules):
        sure = [path for path, condition in rule.when.items() if condition.present is True or condition.in_]
        found = check_template(folder, rule.template, schema, case_type=flow.case_type, sure=[*sure, rule.to])
        if found and not any((folder / f"{rule.template}.{part}").exists() for part in ("subject.txt", "body.txt")):
            message = f"there is no template {rule.template} in {folder}"
            yield flow.source.problem(("effects", index, "template"), message)
        else:
            yield from found


def _holes(flow: Flow, schema: Mapping[str, Any]) -> Iterator[Problem]:
    """Find new cases that no recipient would get: for each combination of the choices that deliveries ask about."""
    if not flow.deliver:
        return
    first = [rule for rule in flow.deliver if "case.created" in rule.on]
    choices = {path: list(_choices(schema, path)) for rule in first for path in rule.when if _choices(schema, path)}
    for values in islice(product(*choices.values()), _MOST_BRANCHES):
        case = dict(zip(choices, values, strict=True))
        if not any(_surely(rule, case) for rule in first):
            what = " and ".join(f"{path} {'none' if value is None else value}" for path, value in case.items())
            yield flow.source.problem(("deliver",), f"a new case{' with ' if what else ''}{what} goes to no recipient")


def _choices(schema: Mapping[str, Any], path: str) -> list[Any]:
    """Return what a field may hold, None standing for its absence; empty for a field without a list of values."""
    choices = _allowed(field_schema(schema, path) or {})
    return choices if _required(schema, path) or not choices else [*choices, None]


def _allowed(found: Mapping[str, Any]) -> list[Any]:
    choices = found.get("enum")
    return choices if isinstance(choices, list) else []


def _required(schema: Mapping[str, Any], path: str) -> bool:
    below: Mapping[str, Any] = schema
    for name in path.split("."):
        if name not in below.get("required", ()):
            return False
        below = below["properties"][name]
    return True


def _surely(rule: Deliver, case: Mapping[str, Any]) -> bool:
    return all(path in case and condition.holds(case[path]) for path, condition in rule.when.items())
