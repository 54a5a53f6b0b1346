"""How a side of P7 begins: it says that it has imported what it needs, and waits for the word."""

from __future__ import annotations

import sys

READY = "ready"


def wait_for_start() -> None:
    """Returns when the bench says so: memory and processor time are counted from here."""
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    sys.stdin.readline()
