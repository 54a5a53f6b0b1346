"""Durations and sizes as people write them: `250ms`, `5s`, `36h`, `400d`; `256KiB`, `8MiB`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def seconds(value: object) -> float:
    """The seconds in a text such as `250ms` or `36h`; a bare number is refused, as its unit would be a guess."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value.strip())):
        return float(match[1]) * _SECONDS[match[2]]
    raise ValueError(f"{value!r} is not a duration; write a number and its unit, such as 250ms, 5s, 10m, 36h or 400d")


def size(value: object) -> int:
    """The bytes that a text such as `256KiB` means."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)(B|KiB|MiB|GiB)", value.strip())):
        return int(match[1]) * _BYTES[match[2]]
    raise ValueError(f"{value!r} is not a size; write a whole number and its unit, such as 512B, 256KiB or 8MiB")


def _seconds_or_number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else seconds(value)


def _size_or_number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else size(value)


# Defaults in code are numbers of seconds and bytes; what an operator writes carries its unit.
Duration = Annotated[float, BeforeValidator(_seconds_or_number)]
Size = Annotated[int, BeforeValidator(_size_or_number)]
