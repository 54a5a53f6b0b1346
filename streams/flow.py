"""The declared flow: on which event of a case, under which condition, who receives it and which effect is planned.

A flow only decides. Recipients' consumers ask it what is theirs; `flows.planner` writes down what it plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.effects.effect import PlannedEffect, effect_id
from streams.events import CaseEvent

EventType = Literal["case.created", "case.updated", "case.noted", "case.attached"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
# A field of the case, as its schema nests it: `submitter.email`.
FieldPath = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*$", max_length=200)]
Scalar = str | int | float | bool


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("is empty")
    return values


Events = Annotated[tuple[EventType, ...], AfterValidator(_not_empty)]
Values = Annotated[tuple[Scalar, ...], AfterValidator(_not_empty)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Declared):
    """What one field must be. A field that the case lacks is in no list, equals nothing and is not present."""

    in_: Values | None = Field(default=None, alias="in")
    not_in: Values | None = None
    equals: Scalar | None = None
    present: bool | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Condition:
        given = [test for test in (self.in_, self.not_in, self.equals, self.present) if test is not None]
        if len(self.model_fields_set) != 1 or len(given) != 1:
            raise ValueError("needs exactly one of in, not_in, equals, present")
        return self

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The values the condition names, for checking them against the case's schema."""
        return (*(self.in_ or ()), *(self.not_in or ()), *(() if self.equals is None else (self.equals,)))

    def holds(self, value: object) -> bool:
        """Tell whether a field's value (None: the case lacks it) meets the condition."""
        if self.in_ is not None:
            return value in self.in_
        if self.not_in is not None:
            return value not in self.not_in
        if self.equals is not None:
            return value == self.equals
        return (value is not None) is self.present


class Deliver(_Declared):
    """One recipient, and the events it gets."""

    to: Name
    on: Events
    when: Mapping[FieldPath, Condition] = Field(default_factory=dict)


class Branch(_Declared):
    """What follows one outcome of an effect: nothing, a change of the case, a note on it, or another effect."""

    end: Literal[True] | None = None
    set: Mapping[FieldPath, Scalar] | None = None
    note: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    plan: Name | None = None

    @model_validator(mode="after")
    def _one_step(self) -> Branch:
        given = [step for step in (self.end, self.set, self.note, self.plan) if step]
        if len(self.model_fields_set) != 1 or len(given) != 1:
            raise ValueError("needs exactly one of end, set, note, plan")
        return self

    @property
    def patch(self) -> dict[str, Any]:
        """What `set` asks for as a merge patch of the whole case."""
        patch: dict[str, Any] = {}
        for path, value in (self.set or {}).items():
            *above, last = path.split(".")
            below = patch
            for name in above:
                below = below.setdefault(name, {})
            below[last] = value
        return patch


class Then(_Declared):
    """What follows an effect, for each way in which it can end."""

    done: Branch
    failed: Branch
    unknown: Branch

    @property
    def branches(self) -> dict[str, Branch]:
        """The branches by outcome."""
        return {"done": self.done, "failed": self.failed, "unknown": self.unknown}


class Effect(_Declared):
    """One act on the outside world, and the events that plan it; without any, another effect's end plans it.

    `occurrence: once` plans it once in the life of a case, `version` once for each version the event carries.
    """

    purpose: Name
    on: tuple[EventType, ...] = ()
    when: Mapping[FieldPath, Condition] = Field(default_factory=dict)
    sink: Name
    template: Name
    to: FieldPath
    occurrence: Literal["once", "version"]
    then: Then | None = None


class _Declaration(_Declared):
    flow: Name
    case_type: Name
    deliver: tuple[Deliver, ...] = ()
    effects: tuple[Effect, ...] = ()


class Flow:
    """One integration's flow: pure decisions over an event and the opened personal part of its case."""

    def __init__(self, declaration: _Declaration, source: Document) -> None:
        self.name = declaration.flow
        self.case_type = declaration.case_type
        self.deliver = declaration.deliver
        self.effect_rules = declaration.effects
        self.source = source

    @classmethod
    def parse(cls, text: str, path: Path) -> Flow:
        """Read a flow file's text; raises InvalidDeclaration with every problem at its line."""
        return cls._of(read(path, text))

    @classmethod
    def load(cls, path: Path) -> Flow:
        """Read a flow file; raises InvalidDeclaration with every problem at its line."""
        return cls._of(read(path))

    @classmethod
    def _of(cls, source: Document) -> Flow:
        declaration = source.parse(_Declaration)
        if problems := _repeated(declaration, source):
            raise InvalidDeclaration(problems)
        return cls(declaration, source)

    @property
    def recipients(self) -> frozenset[str]:
        """Every recipient the flow can deliver to."""
        return frozenset(rule.to for rule in self.deliver)

    def deliveries(self, event: CaseEvent, personal: Mapping[str, Any]) -> list[str]:
        """Return the recipients that get this event, in the order of the file, each once."""
        matching = (rule.to for rule in self.deliver if self._applies(rule, event, personal))
        return list(dict.fromkeys(matching))

    def delivers(self, recipient: str, event: CaseEvent, personal: Mapping[str, Any]) -> bool:
        """Tell whether this recipient gets this event."""
        return any(rule.to == recipient and self._applies(rule, event, personal) for rule in self.deliver)

    def plans_on(self, event: CaseEvent) -> bool:
        """Tell whether events of this kind can plan an effect at all, without opening anything."""
        return event.case_type == self.case_type and any(event.type in rule.on for rule in self.effect_rules)

    def effects(self, event: CaseEvent, personal: Mapping[str, Any]) -> list[PlannedEffect]:
        """Return the effects this event plans. The same event always plans effects with the same ids."""
        return [
            self._planned(rule, event, personal) for rule in self.effect_rules if self._applies(rule, event, personal)
        ]

    def rule(self, sink: str, purpose: str) -> Effect | None:
        """Return the rule of an effect."""
        found = (rule for rule in self.effect_rules if (rule.sink, rule.purpose) == (sink, purpose))
        return next(found, None)

    def planned_by(self, purpose: str) -> Effect | None:
        """Return the rule that a branch's `plan` names."""
        return next((rule for rule in self.effect_rules if rule.purpose == purpose), None)

    def follow_up(
        self, rule: Effect, case_id: UUID, occurrence: str, payload: Mapping[str, Any]
    ) -> PlannedEffect | None:
        """Return the effect that follows another, about the same version of the case; None where `when` forbids it.

        `occurrence` and `payload` are those of the effect it follows.
        """

        def value(path: str) -> object:
            found = _at(path, payload["public"])
            return _at(path, payload["personal"]) if found is None else found

        if not all(condition.holds(value(path)) for path, condition in rule.when.items()):
            return None
        occurrence = "once" if rule.occurrence == "once" else occurrence
        return PlannedEffect(
            effect_id=effect_id(rule.sink, case_id, rule.purpose, occurrence),
            sink=rule.sink,
            purpose=rule.purpose,
            occurrence=occurrence,
            payload={**payload, "template": rule.template, "to": value(rule.to)},
        )

    def _applies(self, rule: Deliver | Effect, event: CaseEvent, personal: Mapping[str, Any]) -> bool:
        return (
            event.case_type == self.case_type
            and event.type in rule.on
            and all(condition.holds(field_of(path, event, personal)) for path, condition in rule.when.items())
        )

    def _planned(self, rule: Effect, event: CaseEvent, personal: Mapping[str, Any]) -> PlannedEffect:
        occurrence = "once" if rule.occurrence == "once" else str(event.version)
        return PlannedEffect(
            effect_id=effect_id(rule.sink, event.case_id, rule.purpose, occurrence),
            sink=rule.sink,
            purpose=rule.purpose,
            occurrence=occurrence,
            payload={
                "flow": self.name,
                "template": rule.template,
                "to": field_of(rule.to, event, personal),
                "case": _facts(event),
                "public": {**event.document, "status": event.status},
                "personal": dict(personal),
            },
        )


def field_of(path: str, event: CaseEvent, personal: Mapping[str, Any]) -> object:
    """Return one field of the whole case, or None where the case lacks it."""
    if path == "status":
        return event.status
    found = _at(path, event.document)
    return _at(path, personal) if found is None else found


def _at(path: str, document: Mapping[str, Any]) -> object:
    value: object = document
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _facts(event: CaseEvent) -> dict[str, str | int]:
    return {
        "id": str(event.case_id),
        "reference": event.reference,
        "type": event.case_type,
        "version": event.version,
        "at": event.at.isoformat(),
    }


def _repeated(declaration: _Declaration, source: Document) -> list[Problem]:
    """Two rules for the same sink and purpose would plan effects with one id, and one would silently never happen."""
    seen: set[tuple[str, str]] = set()
    problems = []
    for index, rule in enumerate(declaration.effects):
        if (rule.sink, rule.purpose) in seen:
            message = f"is used twice for the sink {rule.sink}; give each effect its own purpose"
            problems.append(source.problem(("effects", index, "purpose"), message))
        seen.add((rule.sink, rule.purpose))
    return problems
