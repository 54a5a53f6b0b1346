"""How a process that cannot start says so."""

from __future__ import annotations

import pytest
import typer

from gateway.assembly import NotReady
from gateway.settings import InvalidSettings
from gateway.starting import said

PORT = NotReady(["SILOGATE_PORT: taken"])
SENDER = InvalidSettings(["SILOGATE_SMTP_FROM: not an address"])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (PORT, 1),
        (SENDER, 2),
        (ExceptionGroup("tasks", [ExceptionGroup("tasks", [PORT])]), 1),
        (ExceptionGroup("tasks", [PORT, SENDER]), 2),
    ],
)
def test_what_keeps_a_process_from_running_is_said(
    raised: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sentences and an exit code, alone or out of the groups of nested tasks."""
    with pytest.raises(typer.Exit) as left, said():
        raise raised
    assert left.value.exit_code == code
    assert "SILOGATE_" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    """A group that also holds something else is not made to look like a wrong setting."""
    with pytest.raises(ExceptionGroup), said():
        raise ExceptionGroup("tasks", [PORT, ZeroDivisionError()])
