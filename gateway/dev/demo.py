"""`silogate demo`: a council on this machine, from its website to the recipients' databases, on real servers.

Everything runs from here: the servers under their keeper, `silogate serve` and `silogate work` as processes of their
own, and the form, which stands in for the council's website, in this one. It ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from aiohttp import web

from gateway.dev.children import Child, ChildFailed
from gateway.dev.council import LOADED, Council, establish
from gateway.dev.desks import Screens
from gateway.dev.form.app import FormSettings, make_form
from gateway.dev.form.backstage import Backstage, add_backstage
from gateway.dev.journey import walk
from gateway.dev.process import tail
from gateway.dev.running import Running
from gateway.dev.stack import PROJECT, StackFailed, open_stack
from gateway.dev.steps import StepFailed, Steps, until
from gateway.stopping import stop_on_signals

_PORTS = {"form": 8600, "gateway": 8601, "admin": 8602, "worker": 8603}
_READY_S = 60.0


async def run_demo(*, check: bool) -> int:
    """Runs until Ctrl-C, or with `check` until the journey is walked; 0 when all was well and every step was seen."""
    root = PROJECT / ".silogate" / (f"demo-check-{os.getpid()}" if check else "demo")
    steps = Steps()
    with stop_on_signals() as stop:
        try:
            finished = await _unless_stopped(_run(root, steps, check=check), stop)
        except (StackFailed, ChildFailed, StepFailed) as failure:
            steps.say(f"\nThe demo failed: {failure}")
            return 1
    # To stop a demo is how one ends it; a journey that is stopped has not seen every step.
    return 0 if finished or not check else 1


async def _unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether the work came to its end; false when somebody stopped it first, after it has put everything away."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        working.cancel()
        await asyncio.wait((working,))
        return False
    finally:
        stopping.cancel()


async def _run(root: Path, steps: Steps, *, check: bool) -> None:
    steps.say("Silogate demo: starting")
    async with AsyncExitStack() as exits:
        exits.callback(steps.say, "Stopped")
        async with steps.step("servers: PostgreSQL and its replica, Valkey, Kafka, mail"):
            stack = await exits.enter_async_context(
                open_stack(root, ephemeral=True, durable=False, on_progress=_progress(steps))
            )
        async with steps.step("databases, keys and synthetic files"):
            council = await establish(stack.servers, root, _PORTS)
        async with steps.step(f"silos loaded: {', '.join(LOADED)}"):
            await _load(council)
        children = []
        async with steps.step("silogate serve and silogate work"):
            for name in ("serve", "work"):
                child = await council.start(name)
                exits.push_async_callback(child.stop)
                children.append(child)
            http = await exits.enter_async_context(aiohttp.ClientSession())
            await _ready(http, (council.address("admin"), council.address("worker")), children)
        screens = await exits.enter_async_context(_screens(council))
        running = _running(council, screens, stack.servers.maildir)
        await exits.enter_async_context(_form(http, running, council.ports["form"]))
        exits.callback(steps.say, "\nStopping")
        if check:
            await _beside(children, _walked(running, steps, children))
        else:
            _show(steps, running, council.logs)
            await _beside(children, asyncio.Event().wait())


async def _walked(running: Running, steps: Steps, children: list[Child]) -> None:
    """Walks the journey; when a step is not seen, shows what the processes said last, for their logs go with them."""
    try:
        await walk(running, steps)
    except Exception:
        for child in children:
            steps.say(f"\nThe end of {child.log.name}:\n{tail(child.log)}")
        raise


def _progress(steps: Steps) -> Any:
    """Shows what takes long the first time: Kafka's files are fetched once."""
    return lambda server, text: steps.say(f"    {server}: {text}") if text.startswith("fetching") else None


async def _load(council: Council) -> None:
    try:
        await council.load()
    except ExceptionGroup as failures:
        # Three loads side by side: the first reason is enough for a person to begin with.
        raise failures.exceptions[0] from None


async def _ready(http: aiohttp.ClientSession, addresses: tuple[str, ...], children: list[Child]) -> None:
    async def ready(address: str) -> bool | None:
        try:
            async with http.get(f"{address}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return True if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def all_ready() -> None:
        for address in addresses:
            await until(f"{address}/readyz", partial(ready, address), timeout_s=_READY_S)

    await _beside(children, all_ready())


async def _beside(children: list[Child], work: Coroutine[Any, Any, Any]) -> None:
    """Does the work; ChildFailed as soon as one of the processes ends under it."""
    tasks = [asyncio.ensure_future(child.failed()) for child in children]
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                raise task.result()
        working.result()
    finally:
        for task in (working, *tasks):
            task.cancel()
        await asyncio.gather(working, *tasks, return_exceptions=True)


@asynccontextmanager
async def _screens(council: Council) -> AsyncIterator[Screens]:
    async with AsyncExitStack() as exits:
        pools = {
            name: await exits.enter_async_context(asyncpg.create_pool(url, min_size=0, max_size=2))
            for name, url in council.recipient_urls.items()
        }
        yield Screens(pools)


@asynccontextmanager
async def _form(http: aiohttp.ClientSession, running: Running, port: int) -> AsyncIterator[None]:
    app = make_form(FormSettings(running.gateway, running.website_key, backstage=True), http)
    add_backstage(app, Backstage(running.screens, running.maildir))
    runner = web.AppRunner(app, shutdown_timeout=1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
    finally:
        await runner.cleanup()


def _running(council: Council, screens: Screens, maildir: Path) -> Running:
    return Running(
        form=council.address("form"),
        gateway=council.address("gateway"),
        admin=council.address("admin"),
        worker=council.address("worker"),
        website_key=council.website_key,
        benefits_key=council.benefits_key,
        operator_key=council.operator_key,
        screens=screens,
        maildir=maildir,
    )


def _show(steps: Steps, running: Running, logs: Path) -> None:
    steps.say(
        f"""
Running. Ctrl-C stops everything.

  The resident's form   {running.form}/
  The operator's page   {running.admin}/admin/
      sign in with      {running.operator_key}
  Metrics               {running.admin}/metrics and {running.worker}/metrics

  To play the other parts:
      back office       {running.form}/back-office   set a status there and watch it come back
      mailbox           {running.form}/mailbox
      API description   {running.admin}/docs
      logs              {logs}
"""
    )
