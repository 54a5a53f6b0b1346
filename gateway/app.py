"""`silogate serve`: everything one gateway process is made of, wired here and nowhere else."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib.metadata import version

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry

from cache.metrics import CacheMetrics
from gateway import logs
from gateway.admin.pages import add_pages
from gateway.asking import Asking, asking
from gateway.assembly import Assembly, NotReady, assembled, ensure_topics
from gateway.audit import Audit
from gateway.auth import ApiKeys
from gateway.blobs import Blobs
from gateway.collector import spare_the_collector
from gateway.context import Context, EdgeOptions
from gateway.examining import run_examinations
from gateway.health import Health
from gateway.limits import DEFAULT_RATES, RateClass
from gateway.live import Live
from gateway.protocol import Runner
from gateway.server import build_admin_app, build_public_app, drain, run_edge
from gateway.serving import IN_FLIGHT
from gateway.settings import Settings
from gateway.starting import open_site, said
from gateway.stopping import stop_on_signals
from gateway.telemetry import EdgeMetrics

_CONNECTIONS = 20
# How long a balancer may take to notice `not ready` before the port closes.
_NOTICE_S = 0.5
_LOOK_S = 0.05
# For connections that have no request in flight when the ports close.
_CUT_S = 1.0
_log = structlog.get_logger("gateway.app")


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM; 0 after a clean stop, 1 or 2 when it could not start."""
    logs.configure(settings.log_format)
    with said():
        async with assembled(settings, name="silogate serve", connections=_CONNECTIONS) as assembly:
            with stop_on_signals() as stop:
                await _serve(assembly, stop)
    return 0


async def _serve(assembly: Assembly, stop: asyncio.Event) -> None:
    """Start what answers before what asks; stop in the opposite order."""
    registry = CollectorRegistry()
    metrics = CacheMetrics(registry)
    async with asking(assembly, metrics) as lookups:
        context = _context(assembly, registry, lookups)
        async with asyncio.TaskGroup() as background:
            running = [background.create_task(run_edge(context), name="edge")]
            running.append(background.create_task(_topic_exists(assembly), name="topic"))
            running.append(background.create_task(lookups.run(), name="lookups"))
            running.append(background.create_task(_examined(assembly, lookups, metrics), name="examinations"))
            await _listen(context, stop)
            for task in running:
                task.cancel()


async def _examined(assembly: Assembly, lookups: Asking, metrics: CacheMetrics) -> None:
    declared = [lookup for one in assembly.integrations for lookup in one.lookups]
    silos = {name: parts.silo for name, parts in lookups.silos.items()}
    await run_examinations(assembly.settings, declared, lookups.groups, silos, metrics)


async def _listen(context: Context, stop: asyncio.Event) -> None:
    settings = context.settings
    admin, public = build_admin_app(context), build_public_app(context)
    add_pages(admin, context)
    async with AsyncExitStack() as ports:
        await _open_port(ports, admin, settings.admin_host, settings.admin_port, "SILOGATE_ADMIN_PORT")
        site = await _open_port(ports, public, settings.host, settings.port, "SILOGATE_PORT")
        context.health.start()
        spare_the_collector()
        _log.info("serve.ready", port=settings.port, admin_port=settings.admin_port)
        await stop.wait()
        # not ready first, then no new connections, then the requests in flight end
        _log.info("serve.draining")
        drain(context)
        await asyncio.sleep(_NOTICE_S)
        await site.stop()
        await _answered(public, settings.shutdown_grace)
    _log.info("serve.stopped")


async def _answered(app: web.Application, grace_s: float) -> None:
    """Wait for what is in flight: once aiohttp shuts a connection down, it drops what the client still sends on it."""
    deadline = asyncio.get_running_loop().time() + grace_s
    while app[IN_FLIGHT].busy and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - once a process
        await asyncio.sleep(_LOOK_S)


async def _open_port(ports: AsyncExitStack, app: web.Application, host: str, port: int, setting: str) -> web.TCPSite:
    runner = Runner(app, access_log=None, shutdown_timeout=_CUT_S, handle_signals=False)
    await runner.setup()
    ports.push_async_callback(runner.cleanup)
    return await open_site(runner, host, port, setting)


async def _topic_exists(assembly: Assembly) -> None:
    """Make the topic if the workers have not: the event streams follow it. Kafka away is no reason not to serve."""
    delay_s = 1.0
    while True:
        try:
            await ensure_topics(assembly)
            return
        except NotReady:
            await asyncio.sleep(delay_s)
            delay_s = min(30.0, delay_s * 2)


def _context(assembly: Assembly, registry: CollectorRegistry, lookups: Asking) -> Context:
    settings, pool, link = assembly.settings, assembly.pool, lookups.link
    edge = EdgeMetrics(registry, version("silogate"))
    live = Live(pool, settings.kafka_bootstrap, assembly.topic, metrics=edge)
    case_types = [one.case_type for one in assembly.integrations if one.case_type is not None]
    return Context(
        settings=settings,
        pool=pool,
        cases=assembly.cases,
        lookups={lookup.name: lookup for one in assembly.integrations for lookup in one.lookups},
        groups=lookups.groups,
        keys=ApiKeys(pool),
        audit=Audit(pool, metrics=edge),
        blobs=Blobs(settings.blobs),
        live=live,
        case_types={case_type.name: case_type for case_type in case_types},
        integrations={one.name: one for one in assembly.integrations},
        metrics=edge,
        health=Health(
            pool, {"redis": lambda: link.call(lambda redis: redis.ping()), "kafka": live.probe}, metrics=edge
        ),
        digest=assembly.ring.hmac,
        options=EdgeOptions(
            rates=DEFAULT_RATES | {"lookup": RateClass(settings.lookup_rate, 2 * settings.lookup_rate)},
            access_log_every=settings.access_log_every,
        ),
    )
