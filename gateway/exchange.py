"""One request and its answer: what the middleware and the handler tell each other about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from gateway.auth import Principal
from gateway.route import Route

# Kept back from the deadline, so that an answer or a refusal at the last moment still goes out.
TO_SEND_S = 0.05


@dataclass(slots=True)
class Exchange:
    """Lives as long as the request. The handler fills `subject`, `outcome` and `detail` for the audit row.

    None of the three may hold a personal value. `route` is None for an address that no route serves. `deadline` is in
    the event loop's clock; None means a stream, which has none.
    """

    correlation_id: str
    started: float
    route: Route | None
    deadline: float | None
    principal: Principal | None = None
    subject: str = "-"
    outcome: str | None = None
    detail: dict[str, str | int | bool | None] = field(default_factory=dict)
    audited: bool = False

    @property
    def actor(self) -> str:
        """Who asks, as history and audit name them."""
        return "anonymous" if self.principal is None else self.principal.actor


EXCHANGE = web.RequestKey("exchange", Exchange)
