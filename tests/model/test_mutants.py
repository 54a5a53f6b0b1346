"""The search finds what is wrong with protocols that are."""

from __future__ import annotations

import pytest

from tests.model.mutants import MUTANTS, Mutant
from tests.model.search import explore


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    """A wrong protocol ends in a violation, with the way to it; `pytest -s` shows that."""
    found = explore(mutant.made(), most=100_000)
    print(f"\n{mutant.name}: {found}")  # noqa: T201 - what the search saw is its result
    assert found.wrong is not None, f"nothing is wrong with {mutant.name} in {found.worlds:,} worlds"
    assert found.trace
