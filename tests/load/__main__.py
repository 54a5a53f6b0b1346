"""`make bench`: every measure there is, one table, and bench.json. Exit code 1 when a bar is missed.

A measure that is not here was not run, and is not a row: no number is made up.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

from tests.load import bench_mapping

_ROUNDS = 15


def main() -> int:
    versions = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    comparisons = [bench_mapping.measure(_ROUNDS)]
    sys.stdout.write(f"Python {versions['python']}, {versions['machine']}, {_ROUNDS} rounds, ours to the peer's\n")
    for comparison in comparisons:
        sys.stdout.write(comparison.line() + "\n")
    rows = [comparison.row(versions) for comparison in comparisons]
    Path("bench.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(comparison.is_met for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
