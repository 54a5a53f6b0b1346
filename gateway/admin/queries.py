"""The SQL of the operator's pages, read once from queries.sql."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def _read(text: str) -> Mapping[str, str]:
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))


QUERIES = _read(Path(__file__).with_name("queries.sql").read_text(encoding="utf-8"))
