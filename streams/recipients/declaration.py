"""Reads one file of an integration's folder recipients/ and checks it against the case type."""

from pathlib import Path

from streams.cases.casetype import CaseType
from streams.declared import InvalidDeclaration
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration

__all__ = ["RecipientDeclaration", "read_recipient"]


def read_recipient(path: Path, case_type: CaseType) -> RecipientDeclaration:
    """The declaration; raises InvalidDeclaration with every problem that shows without reaching the recipient."""
    declaration = RecipientDeclaration.parse(path)
    if declaration.recipient != path.stem:
        message = f"must be the file's name, {path.stem}"
        raise InvalidDeclaration([declaration.problem(("recipient",), message)])
    Mapping.compile(declaration, case_type)
    return declaration
