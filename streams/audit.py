"""What streams asks of the audit trail: whoever wires the application keeps it."""

from collections.abc import Mapping
from typing import Protocol

Detail = Mapping[str, str | int | bool | None]


class AuditLog(Protocol):
    """Keeps who did what to what, and how it ended."""

    async def record(
        self,
        *,
        actor: str,
        action: str,
        subject: str,
        outcome: str,
        correlation_id: str,
        detail: Detail,
        once: str | None = None,
    ) -> None:
        """Return when the row is durable, or raise: the row may then be there all the same.

        `subject` and `detail` carry no personal data. `once` names what may be told once only: a row of that name that
        is there already, whoever wrote it, counts as this one.
        """
        ...
