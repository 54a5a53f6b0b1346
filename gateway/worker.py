"""`silogate work`: relay, recipients, flow, pollers and ledger of one worker process, wired here and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway import logs
from gateway.assembly import Assembly, NotReady, assembled, ensure_topics
from gateway.audit import Audit
from gateway.collector import spare_the_collector
from gateway.declarations import Integration
from gateway.health import Health
from gateway.server import build_worker_app
from gateway.settings import InvalidSettings, Settings
from gateway.starting import open_site, said
from gateway.stopping import stop_on_signals
from gateway.telemetry import EdgeMetrics
from streams.consumer.consumer import Consumer
from streams.consumer.fuse import FuseBlown
from streams.consumer.handlers import BatchHandler, CaseHandler
from streams.consumer.limits import ConsumerLimits, FuseLimits, Retry, SessionTimeouts
from streams.consumer.mirror import Mirror
from streams.consumer.replay import until_requested
from streams.effects.governor import Governor
from streams.effects.metrics import EffectMetrics
from streams.errors import Misconfigured
from streams.flows.following import Follower
from streams.flows.planner import FlowPlanner
from streams.ledger import Ledger
from streams.mapping.compile import Mapping as FieldTable
from streams.metrics import StreamMetrics
from streams.outbox import Relay, producer
from streams.recipients.database import RecipientDatabase
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.poller import Poller
from streams.recipients.postgres import PostgresRecipient
from streams.silos.canary import Canary
from streams.sinks.notifications.message import BadAddress
from streams.sinks.notifications.smtp import BadServer, MailServer, SmtpSink
from streams.sinks.notifications.templates import MailTemplate
from streams.topics import dead_letter_topic, effects_topic, group_name
from streams.upkeep import Upkeep

_CONNECTIONS = 30
_log = structlog.get_logger("gateway.worker")


async def work(settings: Settings) -> int:
    """Work until SIGTERM; 0 after a clean stop, 1 or 2 when it could not start."""
    logs.configure(settings.log_format)
    with said():
        async with assembled(settings, name="silogate work", connections=_CONNECTIONS) as assembly:
            _require_recipients(assembly)
            groups = [group_name(settings.topic_prefix, part) for part in _mirrored(assembly)]
            await ensure_topics(assembly, *(dead_letter_topic(assembly.topic, group) for group in groups))
            with stop_on_signals() as stop:
                await _Worker(assembly, stop).run()
    return 0


class _Worker:
    """The parts of one worker, and the order in which they stop: consumers and pollers, ledger, relay, audit, port."""

    def __init__(self, assembly: Assembly, stop: asyncio.Event) -> None:
        self._assembly = assembly
        self._settings = assembly.settings
        self._stop = stop
        self._registry = CollectorRegistry()
        edge = EdgeMetrics(self._registry, version("silogate"))
        self._audit = Audit(assembly.pool, metrics=edge)
        self._health = Health(assembly.pool, {}, metrics=edge)
        self._streams = StreamMetrics(self._registry)
        names = sorted({name for one in assembly.integrations for name in one.recipients})
        self._recipients = RecipientMetrics(self._registry, names)
        self._effects = EffectMetrics(self._registry, ["email"])
        self._mirrors = {
            part: Mirror(
                self._settings.kafka_bootstrap,
                assembly.topic,
                group_name(self._settings.topic_prefix, part),
                metrics=self._streams,
                mapping_version=mapping,
            )
            for part, mapping in _mirrored(assembly).items()
        }

    async def run(self) -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as support:
            await self._open_port(stack)
            upkeep = [support.create_task(self._audit.run()), support.create_task(self._health.run())]
            late = asyncio.Event()
            parts: list[Relay | Mirror] = [self._relay(), *self._mirrors.values()]
            last = [support.create_task(part.run(late)) for part in parts]
            async with asyncio.TaskGroup() as tasks:
                for integration in self._assembly.integrations:
                    self._start_integration(integration, stack, tasks)
                tasks.create_task(self._ledger().run(self._stop))
                tasks.create_task(Upkeep(self._assembly.pool, self._streams).run(self._stop))
                tasks.create_task(self._follower().run(self._stop))
                if self._settings.canary_every:
                    tasks.create_task(self._canary().run(self._stop))
                self._health.start()
                spare_the_collector()
                _log.info("work.ready", port=self._settings.worker_port)
                await self._stop.wait()
                _log.info("work.draining")
                self._health.drain()
            # what the last handlers committed still leaves for Kafka; what does not waits in the outbox
            late.set()
            await asyncio.wait(last)
            for task in upkeep:
                task.cancel()
        _log.info("work.stopped")

    def _start_integration(self, one: Integration, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        if one.case_type is None or one.flow is None:
            return
        assembly = self._assembly
        planner = FlowPlanner(one.flow, assembly.pool, assembly.keys)
        tasks.create_task(self._consume(f"flow.{one.name}", planner))
        for name, declaration in one.recipients.items():
            address = self._settings.recipients[name].get_secret_value()
            database = RecipientDatabase(address, FieldTable.compile(declaration, one.case_type.type))
            stack.push_async_callback(database.close)
            handler = PostgresRecipient(
                declaration,
                database,
                keys=assembly.keys,
                gateway_pool=assembly.pool,
                metrics=self._recipients,
                wanted=partial(one.flow.delivers, name),
            )
            tasks.create_task(self._consume(f"recipient.{name}", handler))
            if declaration.poll is not None:
                poller = Poller(
                    declaration,
                    database,
                    cases=assembly.cases,
                    gateway_pool=assembly.pool,
                    metrics=self._recipients,
                )
                tasks.create_task(poller.run(self._stop))

    async def _consume(self, name: str, handler: BatchHandler | CaseHandler) -> None:
        """Run one consumer group. One that is misconfigured stops alone: the others have work to do.

        One whose fuse has blown waits for `silogate dlq resume`.
        """
        group = group_name(self._settings.topic_prefix, name)
        consumer = Consumer(
            self._settings.kafka_bootstrap,
            group,
            self._assembly.topic,
            handler,
            pool=self._assembly.pool,
            metrics=self._streams,
            limits=self._limits(),
            mirror=self._mirrors.get(name),
        )
        while True:
            try:
                await consumer.run(self._stop)
            except FuseBlown as error:
                _log.error("work.fuse_blown", group=group, reason=error.reason)
                if await until_requested(self._assembly.pool, group, self._stop):
                    _log.info("work.resumed", group=group)
                    continue
            except Misconfigured as error:
                _log.error("work.connector_stopped", group=name, reason=error.reason)
            return

    def _limits(self) -> ConsumerLimits:
        session_ms = int(self._settings.kafka_session_timeout * 1000)
        # Kafka wants three heartbeats or more in a session
        sessions = SessionTimeouts(session_ms=session_ms, heartbeat_ms=min(3000, session_ms // 3))
        return ConsumerLimits(
            sessions=sessions,
            drain_s=self._settings.shutdown_grace,
            retry=Retry(attempts=self._settings.park_after),
            fuse=FuseLimits(),
        )

    def _canary(self) -> Canary:
        assembly = self._assembly
        return Canary(assembly.pool, assembly.taggers, self._streams, every_s=self._settings.canary_every)

    def _relay(self) -> Relay:
        bootstrap = self._settings.kafka_bootstrap
        return Relay(self._assembly.pool, lambda: producer(bootstrap, "silogate-relay"), self._streams)

    def _ledger(self) -> Ledger:
        settings = self._settings
        sink = _mail_sink(self._assembly)
        return Ledger(
            self._assembly.pool,
            self._assembly.keys,
            {sink.name: sink},
            owner=uuid4(),
            lease_s=settings.effect_lease,
            audit=self._audit,
            metrics=self._effects,
            governor=Governor(settings.effects_per_hour, settings.effects_first_run),
            outcomes_topic=effects_topic(settings.topic_prefix),
        )

    def _follower(self) -> Follower:
        assembly = self._assembly
        flows = [one.flow for one in assembly.integrations if one.flow is not None]
        return Follower(assembly.pool, assembly.keys, assembly.cases, flows)

    async def _open_port(self, stack: AsyncExitStack) -> None:
        runner = web.AppRunner(build_worker_app(self._health, self._registry), access_log=None, handle_signals=False)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await open_site(runner, self._settings.admin_host, self._settings.worker_port, "SILOGATE_WORKER_PORT")


def _mirrored(assembly: Assembly) -> dict[str, str | None]:
    """The consumer groups whose parked events are copied to Kafka, by their part of the name, and their mappings."""
    if not assembly.settings.dlq_mirror:
        return {}
    found: dict[str, str | None] = {}
    for one in assembly.integrations:
        if one.case_type is None or one.flow is None:
            continue
        found[f"flow.{one.name}"] = None
        for name, declaration in one.recipients.items():
            found[f"recipient.{name}"] = FieldTable.compile(declaration, one.case_type.type).digest
    return found


def _mail_sink(assembly: Assembly) -> SmtpSink:
    settings = assembly.settings
    try:
        server = MailServer.parse(settings.smtp_url.get_secret_value())
    except BadServer as error:
        raise InvalidSettings([f"SILOGATE_SMTP_URL: {error}"]) from None
    try:
        return SmtpSink(server, settings.smtp_from, _templates(assembly))
    except BadAddress as error:
        raise InvalidSettings([f"SILOGATE_SMTP_FROM: {error}"]) from None


def _templates(assembly: Assembly) -> Mapping[str, MailTemplate]:
    """The templates that flows name, by `flow/template`."""
    found: dict[str, Any] = {}
    for one in assembly.integrations:
        if one.flow is None or one.case_type is None or one.templates is None:
            continue
        for rule in one.flow.effect_rules:
            schema = one.case_type.type.schema
            found[f"{one.flow.name}/{rule.template}"] = MailTemplate.load(one.templates, rule.template, schema)
    return found


def _require_recipients(assembly: Assembly) -> None:
    missing = {name for one in assembly.integrations for name in one.recipients} - set(assembly.settings.recipients)
    if missing:
        names = [f"SILOGATE_RECIPIENT_{name.upper().replace('-', '_')}_URL" for name in sorted(missing)]
        raise NotReady([f"{name} is not set: the database of that recipient" for name in names])
