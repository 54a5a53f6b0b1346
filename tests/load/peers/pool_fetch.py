"""One `pool.fetch` a request in aiohttp: asyncpg's pool of eight, statements prepared by its own cache.

https://magicstack.github.io/asyncpg/current/usage.html#connection-pools and
https://docs.aiohttp.org/en/stable/web_quickstart.html#json-response
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import asyncpg
from aiohttp import web

from tests.load.peers.origin import PORT, POSTGRES

POOL = web.AppKey("pool", asyncpg.Pool)
_SQL = os.environ["BENCH_SQL"]


async def lookup(request: web.Request) -> web.Response:
    rows = await request.app[POOL].fetch(_SQL, request.query["postcode"])
    results = [dict(row) for row in rows]
    return web.json_response({"lookup": "addresses-of-postcode", "results": results})


async def pool(app: web.Application) -> AsyncIterator[None]:
    settings = {"search_path": "silo_gazetteer"}
    async with asyncpg.create_pool(POSTGRES, min_size=8, max_size=8, server_settings=settings) as made:
        app[POOL] = made
        yield


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(pool)
    app.router.add_get("/v1/lookups/addresses-of-postcode", lookup)
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)
