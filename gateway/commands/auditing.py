"""The audit log for one command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import asyncpg
from prometheus_client import CollectorRegistry

from gateway.audit import Audit
from gateway.telemetry import EdgeMetrics


@asynccontextmanager
async def auditing(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    """A writer of a chain of its own, while the command lasts."""
    audit = Audit(pool, metrics=EdgeMetrics(CollectorRegistry(), version("silogate")))
    failure: Exception | None = None
    async with asyncio.TaskGroup() as background:
        writer = background.create_task(audit.run())
        try:
            yield audit
        except Exception as error:  # noqa: BLE001 - raised again below: in here it would leave in a group
            failure = error
        writer.cancel()
    if failure is not None:
        raise failure
