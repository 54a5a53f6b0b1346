"""Status tables, both ways: our status becomes a code of the recipient once, and every code of its list comes back.

The law they keep is checked when they are compiled: a status that came from the recipient, sent to it and read again,
is the same status. So a round trip settles at once and two systems can never swing a case between two states.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from streams.errors import Rejected
from streams.mapping.declaration import RecipientDeclaration, Scalar, StatusDeclaration

_SHOWN = 40

Place = tuple[tuple[str | int, ...], str]


@dataclass(frozen=True, slots=True)
class StatusTables:
    """Compiled status tables of one recipient. `back` is keyed by the text of a code, as a poller reads it."""

    column: str
    remote: bool
    out: Mapping[str, Scalar]
    back: Mapping[str, str]

    def reverse(self, code: object) -> str:
        """Our status for a code of the recipient; raises Rejected for a code it never declared."""
        status = self.back.get(str(code))
        if status is None:
            raise Rejected(f"the recipient's status {shown(code)} is not in the reverse table", self.column)
        return status


def compile_status(
    declaration: RecipientDeclaration, statuses: tuple[str, ...]
) -> tuple[StatusTables | None, list[Place]]:
    """The tables, and each mistake with its place; no tables when the recipient has no status or there are mistakes."""
    status = declaration.status
    if status is None:
        return None, []
    mistakes = list(_mistakes(status, statuses))
    if mistakes:
        return None, mistakes
    back = {str(code): ours for code, ours in status.reverse.items()}
    return StatusTables(status.column, status.owner == "remote", dict(status.forward), back), []


def shown(code: object) -> str:
    """A code for a person to read, bounded: codes are the recipient's words, and may be any length."""
    text = str(code)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _mistakes(status: StatusDeclaration, statuses: tuple[str, ...]) -> Iterator[Place]:
    codes = [str(code) for code in status.codes]
    kinds = {type(code) for code in status.codes}
    if not kinds <= {str} and kinds != {int}:
        yield ("status", "codes"), "are either all texts or all whole numbers"
    if len(set(codes)) != len(codes):
        yield ("status", "codes"), "hold the same code twice"
    yield from _forward_mistakes(status, statuses, codes)
    if status.owner == "remote":
        yield from _reverse_mistakes(status, statuses, codes)
    elif status.reverse:
        yield ("status", "reverse"), "is for a status that the recipient owns"


def _forward_mistakes(status: StatusDeclaration, statuses: tuple[str, ...], codes: list[str]) -> Iterator[Place]:
    for ours in statuses:
        if ours not in status.forward:
            yield ("status", "forward"), f"has no code for our status {ours!r}"
    for ours, code in status.forward.items():
        if ours not in statuses:
            yield ("status", "forward", ours), f"{ours!r} is not a status of the case type"
        if str(code) not in codes or type(code) is not type(status.codes[0]):
            yield ("status", "forward", ours), f"{shown(code)} is not in codes"


def _reverse_mistakes(status: StatusDeclaration, statuses: tuple[str, ...], codes: list[str]) -> Iterator[Place]:
    back = {str(code): ours for code, ours in status.reverse.items()}
    for code in codes:
        if code not in back:
            yield ("status", "reverse"), f"does not say what the recipient's code {shown(code)} means"
    for code, ours in back.items():
        if code not in codes:
            yield ("status", "reverse", code), f"{shown(code)} is not in codes"
        if ours not in statuses:
            yield ("status", "reverse", code), f"{ours!r} is not a status of the case type"
        elif back.get(str(status.forward.get(ours)), ours) != ours:
            yield ("status", "reverse", code), f"{ours!r} sent to the recipient comes back as another status"
