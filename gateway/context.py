"""Everything a handler may reach, built once by the composition root and never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg
from aiohttp import web

from cache.answer import Answer, AsOf
from gateway.audit import Audit
from gateway.auth import ApiKeys
from gateway.blobs import Blobs
from gateway.declarations import CaseTypeDeclaration, Integration, LookupDeclaration
from gateway.health import Health
from gateway.limits import DEFAULT_RATES, RateClass
from gateway.live import Live
from gateway.settings import Settings
from gateway.telemetry import EdgeMetrics
from streams.cases.cases import Cases


class Asker(Protocol):
    """What answers one lookup: a cached Group, or an UncachedLookup over the gateway's own cases."""

    async def answer(self, parameters: Mapping[str, Any], *, timeout_s: float, min_as_of: AsOf | None = None) -> Answer:
        """The answer within `timeout_s`; raises SiloUnavailable when nothing could give one."""
        ...


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What the HTTP edge may take beyond the settings; the defaults suit a council of any size."""

    rates: Mapping[str, RateClass] = field(default_factory=lambda: dict(DEFAULT_RATES))
    max_streams: int = 1000
    max_uploads: int = 8
    upload_timeout_s: float = 60.0
    heartbeat_s: float = 15.0
    stream_write_timeout_s: float = 10.0
    # One log line a request; with n > 1 only every n-th answer below 400 is logged, refusals and faults always are.
    access_log_every: int = 1


@dataclass(frozen=True, slots=True)
class Context:
    """`digest` is an HMAC under the deployment's key ring: it stands for a personal value in the audit log."""

    settings: Settings
    pool: asyncpg.Pool
    cases: Cases
    lookups: Mapping[str, LookupDeclaration]
    groups: Mapping[str, Asker]
    keys: ApiKeys
    audit: Audit
    blobs: Blobs
    live: Live
    case_types: Mapping[str, CaseTypeDeclaration]
    integrations: Mapping[str, Integration]
    metrics: EdgeMetrics
    health: Health
    digest: Callable[..., bytes]
    options: EdgeOptions = field(default_factory=EdgeOptions)


CONTEXT = web.AppKey("context", Context)
