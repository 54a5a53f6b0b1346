"""What every peer starts from: its settings, and the same answers as the gateway's, by request target."""

from __future__ import annotations

import json
import os
from pathlib import Path

PORT = int(os.environ["BENCH_PORT"])
REDIS = os.environ.get("BENCH_REDIS", "")
POSTGRES = os.environ.get("BENCH_POSTGRES", "")


def answers() -> dict[str, bytes]:
    """Postcode to answer."""
    found = json.loads(Path(os.environ["BENCH_ANSWERS"]).read_bytes())
    return {postcode: text.encode() for postcode, text in found.items()}
