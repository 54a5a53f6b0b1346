"""A mapping, checked against both sides and compiled to a Python function: case → columns, and status code → status."""

import hashlib
from collections.abc import Iterator
from collections.abc import Mapping as Dictionary
from typing import Any, Self

import orjson

from streams.cases.casetype import CaseType
from streams.events import CaseEvent
from streams.mapping.columns import Column
from streams.mapping.declaration import InvalidMapping, Kind, RecipientDeclaration
from streams.mapping.generate import Forward, generate
from streams.mapping.plan import FieldPlan, plan_fields, plan_status
from streams.mapping.reverse import Place, StatusTables, compile_status

# Part of the digest: raise it when the same declaration would give other values
_FORMAT = 1
# A reference is its prefix, and then two groups of four behind dashes
_REFERENCE_TAIL = 10


class Mapping:
    """The compiled field table of one recipient. `compile` is the only way to one, so every one of them is sound.

    `digest` names this version of it; `kinds` says what each column gets, `remote_columns` which of them are written
    only with a new row.
    """

    def __init__(
        self,
        declaration: RecipientDeclaration,
        case_type: CaseType,
        plans: list[FieldPlan],
        status: StatusTables | None,
    ) -> None:
        self.declaration = declaration
        self.case_type = case_type
        self.status = status
        self.kinds: Dictionary[str, Kind] = {plan.to: plan.kind for plan in plans}
        self.remote_columns = frozenset(plan.to for plan in plans if plan.remote)
        self.digest = _digest(declaration)
        self._of_event = any(source.event for plan in plans for source in plan.sources)
        self._forward: Forward
        self._forward, self.source = generate(plans, declaration.recipient)

    @classmethod
    def compile(
        cls,
        declaration: RecipientDeclaration,
        case_type: CaseType,
        recipient_columns: Dictionary[str, Column] | None = None,
    ) -> Self:
        """Checks everything that can be known before a case flows; raises InvalidMapping with every problem.

        Without `recipient_columns` (a check away from the recipient) the recipient's side is taken as declared.
        """
        plans, mistakes = plan_fields(declaration, case_type, recipient_columns)
        status, wrong = compile_status(declaration, case_type.statuses)
        mistakes.extend(wrong)
        if recipient_columns is not None:
            mistakes.extend(_column_mistakes(declaration, case_type, recipient_columns))
        if mistakes:
            problems = [declaration.problem(place, message) for place, message in mistakes]
            raise InvalidMapping(sorted(problems, key=lambda problem: problem.line))
        if status is not None:
            plans.append(plan_status(status, case_type, (recipient_columns or {}).get(status.column)))
        return cls(declaration, case_type, plans, status)

    def fitted(self, recipient_columns: Dictionary[str, Column]) -> Self:
        """The same mapping, checked against the recipient's real columns and keeping their lengths."""
        return self.compile(self.declaration, self.case_type, recipient_columns)

    def forward(
        self, document: Dictionary[str, Any], event: CaseEvent | None = None, *, erased: bool = False
    ) -> dict[str, Any]:
        """Column → value for a whole case; raises Rejected naming the column (or Misconfigured: `on_error: fail`).

        Only what the field table names is in it. Of a case whose person was erased, every `pii` field is its default.
        """
        if event is None and self._of_event:
            raise TypeError("this mapping sends fields of the event")
        return self._forward(document, event, erased)

    def reverse_status(self, remote: object) -> str:
        """Our status for the recipient's code: total over the declared codes, and Rejected for any other."""
        if self.status is None:
            raise TypeError("this recipient has no status")
        return self.status.reverse(remote)


def _digest(declaration: RecipientDeclaration) -> str:
    meaning = declaration.model_dump(mode="json", include={"table", "columns", "fields", "status"})
    return hashlib.sha256(orjson.dumps([_FORMAT, meaning], option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _column_mistakes(
    declaration: RecipientDeclaration, case_type: CaseType, columns: Dictionary[str, Column]
) -> Iterator[Place]:
    """The columns Silogate itself uses, the status column, and columns that nothing fills."""
    used = declaration.columns
    expected: dict[str, tuple[str, Kind | None]] = {"key": (used.key, "text"), "version": (used.version, "integer")}
    expected["id"] = (used.id, None)
    if used.modified is not None:
        expected["modified"] = (used.modified, "timestamp")
    for role, (name, kind) in expected.items():
        column = columns.get(name)
        if column is None:
            yield ("columns", role), f"the recipient's table has no column {name!r}"
        elif kind is not None and not column.takes(kind):
            yield ("columns", role), f"{name!r} is {column.type} and has to take a {kind}"
    key = columns.get(used.key)
    longest = len(case_type.prefix) + _REFERENCE_TAIL
    if key is not None and key.max_chars is not None and key.max_chars < longest:
        yield ("columns", "key"), f"{used.key!r} holds {key.max_chars} characters and a reference has {longest}"
    yield from _status_column_mistakes(declaration, columns)
    filled = {field.to for field in declaration.fields} | {name for name, _ in expected.values()}
    if declaration.status is not None:
        filled.add(declaration.status.column)
    for name, column in columns.items():
        if name not in filled and not (column.nullable or column.has_default or column.generated):
            yield ("fields",), f"nothing fills the column {name!r}, which must not be null"


def _status_column_mistakes(declaration: RecipientDeclaration, columns: Dictionary[str, Column]) -> Iterator[Place]:
    status = declaration.status
    if status is None:
        return
    column = columns.get(status.column)
    kind: Kind = "integer" if type(status.codes[0]) is int else "text"
    if column is None:
        yield ("status", "column"), f"the recipient's table has no column {status.column!r}"
        return
    if not column.takes(kind):
        yield ("status", "column"), f"{status.column!r} is {column.type} and the codes are {kind}"
    for code in status.codes:
        if column.max_chars is not None and len(str(code)) > column.max_chars:
            yield ("status", "codes"), f"{code!r} is longer than the {column.max_chars} characters of the column"
        if column.labels is not None and code not in column.labels:
            yield ("status", "codes"), f"{code!r} is not a value of the column's type {column.type}"
