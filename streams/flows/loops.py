"""Whether what follows an effect can plan it again, and so for ever.

An effect leads to another by planning it, by changing the case so that a rule's condition may hold, or by a note where
a rule waits for notes. A circle is only allowed through an effect that happens once in the life of a case. At run time
a limit of hops stands behind this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streams.declared import Problem
from streams.flow import Effect, Flow, Scalar

_Ways = dict[int, dict[int, str]]


def loops(flow: Flow) -> list[Problem]:
    """Return a problem for each effect with which a circle begins, with the way around it."""
    rules = flow.effect_rules
    ways: _Ways = {
        index: {to: how for to, how in _leads_to(rule, rules) if rules[to].occurrence != "once"}
        for index, rule in enumerate(rules)
    }
    problems, told = [], set[int]()
    for index, rule in enumerate(rules):
        around = None if index in told or rule.occurrence == "once" else _around(index, ways)
        if around is not None:
            told.update(around)
            path = " → ".join(f"{rules[at].purpose} ({ways[at][to]})" for at, to in _steps(around))
            message = f"plans itself again and again: {path} → {rule.purpose}; one of them needs `occurrence: once`"
            problems.append(flow.source.problem(("effects", index, "then"), message))
    return problems


def _leads_to(rule: Effect, rules: tuple[Effect, ...]) -> Iterator[tuple[int, str]]:
    for outcome, branch in rule.then.branches.items() if rule.then else ():
        for index, other in enumerate(rules):
            if branch.plan == other.purpose:
                yield index, f"{outcome}: plan"
            elif branch.set and "case.updated" in other.on and _may_hold(other, branch.set):
                yield index, f"{outcome}: set {', '.join(branch.set)}"
            elif branch.note and "case.noted" in other.on:
                yield index, f"{outcome}: note"


def _may_hold(rule: Effect, changed: Mapping[str, Scalar]) -> bool:
    """Tell whether a rule can hold after a change; what the change does not touch may be anything."""
    return all(path not in changed or condition.holds(changed[path]) for path, condition in rule.when.items())


def _around(start: int, ways: _Ways) -> list[int] | None:
    """Return the shortest way from a rule back to it."""
    paths, seen = [[start]], {start}
    for path in paths:
        for to in ways[path[-1]]:
            if to == start:
                return path
            if to not in seen:
                seen.add(to)
                paths.append([*path, to])
    return None


def _steps(around: list[int]) -> Iterator[tuple[int, int]]:
    return zip(around, [*around[1:], around[0]], strict=True)
