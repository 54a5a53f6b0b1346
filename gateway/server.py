"""The HTTP applications: the public one, the admin one, and the small one beside a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway import docs_page, openapi
from gateway.api.operations import DOCS, HEALTH, OPENAPI, REGISTRY
from gateway.context import CONTEXT, Context
from gateway.direct import DIRECT, Direct
from gateway.exchange import EXCHANGE
from gateway.health import Health
from gateway.limits import Buckets, defer_continue
from gateway.lookup import Lookup
from gateway.middleware import MIDDLEWARE
from gateway.route import Route
from gateway.routes import ADMIN_ROUTES, HEALTH_ROUTES, ROUTES
from gateway.serving import BUCKETS, IN_FLIGHT, LOOKUPS, ROUTE_OF, InFlight, stamp


class Incomplete(Exception):
    """The context lacks what a declared lookup needs; the message names it."""


def build_public_app(context: Context) -> web.Application:
    """The application of the public port. Run it with `access_log=None`: it writes its own lines."""
    app = web.Application(middlewares=MIDDLEWARE)
    app[CONTEXT] = context
    app[LOOKUPS] = {name: _lookup(context, name) for name in context.lookups}
    routes: dict[object, Route] = {route.handler: route for route in ROUTES}
    app[ROUTE_OF] = routes
    app[IN_FLIGHT] = InFlight(context)
    app[BUCKETS] = Buckets(context.options.rates)
    app[DIRECT] = Direct(app)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler, expect_handler=defer_continue)
    app.on_response_prepare.append(_stamp)
    app.on_shutdown.append(_end_streams)
    return app


def build_admin_app(context: Context) -> web.Application:
    """The application of the admin port; the operator's pages are added to it by whoever wires the process."""
    app = _operations(context.health, context.metrics.registry, ADMIN_ROUTES)
    app[CONTEXT] = context
    document = openapi.document(context.lookups, context.case_types)
    app[OPENAPI] = orjson.dumps(document)
    app[DOCS] = docs_page.render(document)
    return app


def build_worker_app(health: Health, registry: CollectorRegistry) -> web.Application:
    """Health and metrics of a process that serves nothing else."""
    return _operations(health, registry, HEALTH_ROUTES)


async def run_edge(context: Context) -> None:
    """What must run beside the public application: audit, live tail, probes, keys, loop watch. Ends when cancelled."""
    await context.blobs.sweep()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(context.audit.run(), name="audit")
        tasks.create_task(context.live.run(), name="live")
        tasks.create_task(context.health.run(), name="health")
        tasks.create_task(context.keys.run(), name="keys")
        tasks.create_task(context.metrics.watch_loop(), name="loop lag")


def drain(context: Context) -> None:
    """Says `not ready` from now on, and ends the event streams so that their clients move to another process."""
    context.health.drain()
    context.live.close()


def _operations(health: Health, registry: CollectorRegistry, routes: Iterable[Route]) -> web.Application:
    app = web.Application()
    app[HEALTH] = health
    app[REGISTRY] = registry
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler)
    app.on_response_prepare.append(_stamp)
    return app


def _lookup(context: Context, name: str) -> Lookup:
    if name not in context.groups:
        raise Incomplete(f"the lookup {name} has nothing that answers it")
    return Lookup(context.lookups[name], context.groups[name], context.digest)


async def _stamp(request: web.Request, response: web.StreamResponse) -> None:
    stamp(response.headers, request[EXCHANGE].correlation_id if EXCHANGE in request else None)


async def _end_streams(app: web.Application) -> None:
    app[CONTEXT].live.close()
