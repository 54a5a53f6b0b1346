"""The admin port's own addresses: health, metrics, and the description of the public interface."""

from __future__ import annotations

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from gateway.admin.rendering import add_security_headers
from gateway.health import Health

HEALTH = web.AppKey("health", Health)
REGISTRY = web.AppKey("registry", CollectorRegistry)
OPENAPI = web.AppKey("openapi", bytes)
DOCS = web.AppKey("docs", str)


async def livez(_request: web.Request) -> web.Response:
    """Alive is whoever answers: no dependency counts, as a restart would mend none."""
    return web.Response(text="alive\n")


async def startupz(request: web.Request) -> web.Response:
    """503 until everything runs that must run before the first request."""
    started = request.app[HEALTH].started
    return web.Response(text="started\n" if started else "starting\n", status=200 if started else 503)


async def readyz(request: web.Request) -> web.Response:
    """503 while nothing should be sent here; with `?verbose` what is known of each dependency."""
    health = request.app[HEALTH]
    status = 200 if health.reason is None else 503
    if "verbose" in request.query:
        return web.Response(body=orjson.dumps(health.report()), status=status, content_type="application/json")
    return web.Response(text="ready\n" if health.reason is None else f"{health.reason}\n", status=status)


async def metrics(request: web.Request) -> web.Response:
    """Everything in the registry, in the text format."""
    return web.Response(body=generate_latest(request.app[REGISTRY]), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def openapi_json(request: web.Request) -> web.Response:
    """The OpenAPI document of this configuration."""
    return web.Response(body=request.app[OPENAPI], content_type="application/json")


async def docs(request: web.Request) -> web.Response:
    """The same for people."""
    response = web.Response(text=request.app[DOCS], content_type="text/html", charset="utf-8")
    add_security_headers(response)
    return response
