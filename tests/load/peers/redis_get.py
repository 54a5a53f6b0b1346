"""One `await redis.get()` a request in aiohttp, as most would write it.

https://redis.readthedocs.io/en/stable/examples/asyncio_examples.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import redis.asyncio as redis
from aiohttp import web

from tests.load.peers.origin import PORT, REDIS, answers

CLIENT = web.AppKey("client", redis.Redis)


async def lookup(request: web.Request) -> web.Response:
    body = await request.app[CLIENT].get(f"answer:{request.query['postcode']}")
    if body is None:
        raise web.HTTPNotFound
    return web.Response(body=body, content_type="application/json")


async def client(app: web.Application) -> AsyncIterator[None]:
    app[CLIENT] = redis.from_url(REDIS)
    await app[CLIENT].mset({f"answer:{postcode}": body for postcode, body in answers().items()})
    yield
    await app[CLIENT].aclose()


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(client)
    app.router.add_get("/v1/lookups/addresses-of-postcode", lookup)
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)
