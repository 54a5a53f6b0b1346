"""Writes the plans of a mapping as one Python function: no declaration is walked while events flow.

Nothing a person wrote becomes code: names and texts enter as quoted constants or through the function's namespace.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from streams.errors import Misconfigured, Rejected
from streams.events import CaseEvent
from streams.mapping.convert import Unfit
from streams.mapping.plan import FieldPlan
from streams.mapping.reverse import shown
from streams.mapping.sources import Source

Forward = Callable[[Mapping[str, Any], CaseEvent | None, bool], dict[str, Any]]

_MISSING = object()
_EMPTY: dict[str, Any] = {}
_LARGEST = 1.7e308
_INLINE = {"strip": "v.strip()", "upper": "v.upper()", "lower": "v.lower()", "text": "str(v)"}
_CHECKED = {
    "text": ("type(v) is not str", "is not a text"),
    "integer": ("type(v) is not int", "is not a whole number"),
    "number": ("type(v) is not float and type(v) is not int", "is not a number"),
    "boolean": ("type(v) is not bool", "is not true or false"),
}


def generate(plans: Sequence[FieldPlan], name: str) -> tuple[Forward, str]:
    """The function that fills every planned column, and its text for people who ask."""
    written = _Writer(plans)
    source = "\n".join(written.lines())
    namespace = written.names
    # The text is made of fixed pieces and quoted constants only (see the module's first lines)
    exec(compile(source, f"<mapping {name}>", "exec"), namespace)  # noqa: S102
    forward: Forward = namespace["forward"]
    return forward, source


class _Writer:
    """Writes the function's lines and collects what they name."""

    def __init__(self, plans: Sequence[FieldPlan]) -> None:
        self._plans = plans
        self._parents: dict[tuple[str, ...], str] = {}
        self.names: dict[str, Any] = {
            "Unfit": Unfit,
            "MISSING": _MISSING,
            "nested": _nested,
            "pick": _pick,
            "every": _every,
            "texts": _texts,
            "unlisted": _unlisted,
            "refused": _refusal(plans),
        }

    def lines(self) -> Iterator[str]:
        yield "def forward(document, event, erased):"
        yield " i = 0"
        yield " try:"
        for index, plan in enumerate(self._plans):
            yield f"  i = {index}"
            # Outside the field's own policy: a later field may read the same object
            for source in plan.sources:
                yield from _in(2, self._open(source))
            yield from _in(2, self._field(index, plan))
            yield f"  v{index} = v"
        yield " except (ValueError, OverflowError) as error:"
        yield "  raise refused(i, error) from None"
        columns = ", ".join(f"{plan.to!r}: v{index}" for index, plan in enumerate(self._plans))
        yield f" return {{{columns}}}"

    def _open(self, source: Source) -> Iterator[str]:
        """Fetches the objects on the way to the value once for all fields."""
        holder = "document"
        if source.event:
            return
        for depth in range(1, len(source.steps)):
            step = source.steps[depth - 1]
            if step.every or step.index is not None:
                return
            path = tuple(one.name for one in source.steps[:depth])
            known = self._parents.get(path)
            if known is None:
                known = self._parents[path] = f"p{len(self._parents)}"
                yield f"{known} = {holder}.get({step.name!r})"
                yield f"if type({known}) is not dict: {known} = nested({known})"
            holder = known

    def _field(self, index: int, plan: FieldPlan) -> Iterator[str]:
        default = self._name(f"d{index}", plan.default)
        body = list(self._value(index, plan, default))
        if plan.on_error in {"null", "default"}:
            fallback = default if plan.on_error == "default" else "None"
            body = ["try:", *_in(1, body), "except (ValueError, OverflowError):", f" v = {fallback}"]
        if plan.pii:
            body = [f"if erased: v = {default}", "else:", *_in(1, body)]
        yield from body

    def _value(self, index: int, plan: FieldPlan, default: str) -> Iterator[str]:
        if not plan.sources:
            yield f"v = {default}"
            return
        yield from self._fetch(index, plan)
        treatment = list(self._treatment(index, plan))
        if treatment:
            yield "if v is not None:"
            yield from _in(1, treatment)
        if plan.required:
            absent = "not v" if plan.kind == "text" else "v is None"
            yield f"if {absent}: raise Unfit('is required and missing')"
        elif plan.default is not None:
            yield f"if v is None: v = {default}"

    def _fetch(self, index: int, plan: FieldPlan) -> Iterator[str]:
        reads = [self._read(source) for source in plan.sources]
        if plan.grid is not None:
            yield f"v, w = {reads[0]}, {reads[1]}"
            # half a point is no point
            yield f"v = None if v is None or w is None else {self._name(f'g{index}', plan.grid)}(v, w)"
        elif len(reads) > 1:
            yield f"v = texts(({', '.join(reads)}))"
        else:
            yield f"v = {reads[0]}"

    def _read(self, source: Source) -> str:
        last = source.steps[-1]
        if source.event:
            return f"event.{last.name}"
        holder, listed = self._holder(source)
        if listed is None:
            return f"{holder}.get({last.name!r})"
        inner = None if listed is last else last.name
        if listed.every:
            return f"every({holder}.get({listed.name!r}), {inner!r}, {source.kind.removesuffix('[]')!r})"
        return f"pick({holder}.get({listed.name!r}), {listed.index!r}, {inner!r})"

    def _holder(self, source: Source) -> tuple[str, Any]:
        """The variable that holds the last object on the way, and the step through a list, if there is one."""
        names: tuple[str, ...] = ()
        for step in source.steps[:-1]:
            if step.every or step.index is not None:
                return self._variable(names), step
            names = (*names, step.name)
        last = source.steps[-1]
        return self._variable(names), last if last.every or last.index is not None else None

    def _variable(self, names: tuple[str, ...]) -> str:
        return self._parents[names] if names else "document"

    def _treatment(self, index: int, plan: FieldPlan) -> Iterator[str]:
        if plan.grid is None and len(plan.sources) == 1 and not plan.sources[0].event:
            wrong = _CHECKED.get(plan.sources[0].kind)
            if wrong is not None:
                yield f"if {wrong[0]}: raise Unfit({wrong[1]!r})"
        for number, step in enumerate(plan.steps):
            name = f"s{index}_{number}"
            yield f"v = {_INLINE[step.name]}" if step.name in _INLINE else f"v = {self._name(name, step.apply)}(v)"
        if plan.table is not None:
            yield f"w = {self._name(f't{index}', dict(plan.table))}.get(v, MISSING)"
            yield f"if w is MISSING: raise unlisted(v, {plan.pii!r})"
            yield "v = w"  # every value of a table was checked when it was compiled
        else:
            yield from self._bounds(index, plan)

    def _bounds(self, index: int, plan: FieldPlan) -> Iterator[str]:
        limit = plan.limit
        if plan.kind == "integer":
            yield f"if not {limit.least} <= v <= {limit.most}: raise Unfit('is out of the range of the column')"
        elif plan.kind == "number":
            yield f"if not -{_LARGEST!r} <= v <= {_LARGEST!r}: raise Unfit('is not a finite number')"
        elif plan.kind == "text":
            check = self._name(f"l{index}", limit.check_text)
            bounds = [bound for bound in (limit.max_chars, limit.max_bytes) if bound is not None]
            # in ASCII a character is a byte in each charset, so one comparison settles nearly every text
            long = f" or len(v) > {min(bounds)}" if bounds else ""
            yield f"if not v.isascii(){long} or '\\0' in v: {check}(v)"

    def _name(self, name: str, value: Any) -> str:
        self.names[name] = value
        return name


def _in(depth: int, lines: Sequence[str] | Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield " " * depth + line


def _refusal(plans: Sequence[FieldPlan]) -> Callable[[int, Exception], Exception]:
    def refused(index: int, error: Exception) -> Exception:
        plan = plans[index]
        # any other error's text may quote the value
        reason = str(error) if isinstance(error, Unfit) else "cannot be converted"
        if plan.on_error == "fail":
            return Misconfigured(f"{plan.to}: {reason}")
        return Rejected(reason, plan.to)

    return refused


def _nested(value: object) -> dict[str, Any]:
    if value is None:
        return _EMPTY
    raise Unfit("its source in the case is not an object")


def _pick(items: object, index: int, name: str | None) -> Any:
    if items is None:
        return None
    if type(items) is not list:
        raise Unfit("its source in the case is not a list")
    if not -len(items) <= index < len(items):
        return None
    item = items[index]
    if name is None or item is None:
        return item
    if type(item) is not dict:
        raise Unfit("its source in the case is not a list of objects")
    return item.get(name)


def _every(items: object, name: str | None, kind: str) -> list[Any] | None:
    """The values of a list that are there, each of the kind the schema declares; None for none."""
    if items is None:
        return None
    if type(items) is not list:
        raise Unfit("its source in the case is not a list")
    expected = {"text": str, "integer": int}.get(kind)
    values = [_pick(items, index, name) for index in range(len(items))]
    found = [value for value in values if value is not None]
    if any(type(value) is not expected for value in found):
        raise Unfit("its source in the case holds something else than " + kind)
    return found or None


def _texts(values: tuple[Any, ...]) -> list[str] | None:
    found = [value for value in values if value is not None and value != ""]
    if any(type(value) is not str for value in found):
        raise Unfit("is not a text")
    return found or None


def _unlisted(value: object, pii: bool) -> Unfit:
    # a code is shown so that a person can add it; a personal value never is
    return Unfit("is not in the value table" if pii else f"{shown(value)} is not in the value table")
