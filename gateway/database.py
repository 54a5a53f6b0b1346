"""The gateway's own pool: schema `gateway`, bounded, every statement under a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from gateway.settings import Settings

# Longer than any statement of the gateway takes, shorter than a person waits for a hung database.
COMMAND_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0


@asynccontextmanager
async def gateway_pool(settings: Settings, *, size: int, name: str = "silogate") -> AsyncIterator[asyncpg.Pool]:
    """Connect to the primary with search_path `gateway`; closes the pool within the command time-out."""
    pool = await asyncpg.create_pool(
        settings.database_url.get_secret_value(),
        min_size=min(1, size),
        max_size=size,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings={"search_path": "gateway", "application_name": name},
    )
    try:
        yield pool
    finally:
        try:
            await asyncio.wait_for(pool.close(), COMMAND_TIMEOUT_S)
        except TimeoutError:
            # a connection that does not come back must not hold up a stop
            pool.terminate()
