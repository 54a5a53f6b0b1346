"""What the public application holds beside its context: compiled lookups, routes by handler, gates and buckets."""

from __future__ import annotations

from collections.abc import MutableMapping

from aiohttp import web

from gateway.context import Context
from gateway.limits import Buckets, Gate
from gateway.lookup import Lookup
from gateway.route import Route

CORRELATION = "Silogate-Correlation-Id"


class InFlight:
    """The gates of one process, and which answers leave a log line."""

    def __init__(self, context: Context) -> None:
        metrics, options = context.metrics, context.options
        self._requests = Gate(context.settings.max_in_flight, "requests", metrics.shed, metrics.in_flight)
        self._others = {
            "stream": Gate(options.max_streams, "streams", metrics.shed, metrics.live_streams),
            "upload": Gate(options.max_uploads, "uploads", metrics.shed),
        }
        self._every = options.access_log_every
        self._answers = 0

    def gate_of(self, rate_class: str | None) -> Gate:
        """Streams last for hours and uploads hold their bytes in memory, so each has a limit of its own."""
        return self._requests if rate_class is None else self._others.get(rate_class, self._requests)

    @property
    def busy(self) -> int:
        """Requests and uploads that are not answered yet; streams end by themselves when the process drains."""
        return self._requests.inside + self._others["upload"].inside

    def is_logged(self, route: Route | None, status: int) -> bool:
        """Whether a request leaves a line: every refusal and fault, every other route's, and each n-th lookup's."""
        if status >= 400 or route is None or route.rate_class != "lookup":
            return True
        self._answers += 1
        return self._answers % self._every == 0


def stamp(headers: MutableMapping[str, str], correlation_id: str | None) -> None:
    """Headers of every answer: nothing is stored or sniffed unless the handler says otherwise."""
    headers.setdefault("Cache-Control", "no-store")
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers["Server"] = "silogate"
    if correlation_id is not None:
        headers[CORRELATION] = correlation_id


ROUTE_OF = web.AppKey("route_of", dict[object, Route])
LOOKUPS = web.AppKey("lookups", dict[str, Lookup])
IN_FLIGHT = web.AppKey("in_flight", InFlight)
BUCKETS = web.AppKey("buckets", Buckets)
