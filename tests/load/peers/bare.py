"""A bare aiohttp handler: one prebuilt answer of the same size to every question, nothing else.

https://docs.aiohttp.org/en/stable/web_quickstart.html
"""

from __future__ import annotations

from aiohttp import web

from tests.load.peers.origin import PORT, answers

_ANSWER = next(iter(answers().values()))


async def lookup(_: web.Request) -> web.Response:
    return web.Response(body=_ANSWER, content_type="application/json")


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/v1/lookups/addresses-of-postcode", lookup)
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)
