"""What the public application holds beside its context: compiled lookups, routes by handler, gates and buckets."""

from __future__ import annotations

from aiohttp import web

from gateway.context import Context
from gateway.limits import Buckets, Gate
from gateway.lookup import Lookup
from gateway.route import Route


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

    def is_sampled(self) -> bool:
        """True for every n-th answer."""
        self._answers += 1
        return self._answers % self._every == 0


ROUTE_OF = web.AppKey("route_of", dict[object, Route])
LOOKUPS = web.AppKey("lookups", dict[str, Lookup])
IN_FLIGHT = web.AppKey("in_flight", InFlight)
BUCKETS = web.AppKey("buckets", Buckets)
