"""What an examination of a lookup says: one sentence each, with a stable code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a lookup; the message never holds a value of a row or of a key.

    `about` is the part of the declaration that it speaks of, `line` the line of the lookup's SQL, where one is known.
    An `error` makes the lookup wrong, a `warning` slow or narrow, and a `note` is worth knowing.
    """

    level: Level
    code: str
    message: str
    about: Literal["sql", "tags", "columns", "parameters", "silo"] = "sql"
    line: int | None = None
