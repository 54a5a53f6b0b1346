"""The sides of a comparison: servers in processes of their own on the server's core, and the load on them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gateway.dev.ports import accepts, free_ports
from gateway.dev.process import Command, spawn, tail
from gateway.dev.stack import PROJECT
from tests.load.council import BenchCouncil
from tests.load.machine import Cores

CONNECTIONS = 64
_START_S = 60.0
_STOP_S = 30.0
_GENERATOR = Path(__file__).with_name("generator.py")


class Unfit(Exception):
    """A side did not start, or answered wrongly: its numbers would mean nothing."""


@dataclass(frozen=True)
class Sample:
    """One round of one side."""

    requests: int
    seconds: float
    cpu_s: float
    hits: int = 0

    @property
    def cost_us(self) -> float:
        """Processor time of the server for one request, in microseconds."""
        return self.cpu_s / self.requests * 1e6

    @property
    def a_second(self) -> float:
        return self.requests / self.seconds


class Side:
    """One server, or several that share the work: `ports` and `pids` in the same order."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.ports: list[int] = []
        self.admin_ports: list[int] = []
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def only(self, n: int) -> Side:
        """One of its processes, to be asked alone."""
        one = Side(f"{self.name}-{n}", self.log)
        one.ports, one.admin_ports, one._processes = (
            self.ports[n : n + 1],
            self.admin_ports[n : n + 1],
            self._processes[n : n + 1],
        )
        return one

    async def add(self, cores: Cores, argv: Sequence[str], environment: Mapping[str, str], port: int) -> None:
        """Start one process on the server's core; it ends with this one."""
        command = Command(
            (sys.executable, *argv),
            environment={"PYTHONPATH": str(PROJECT), **environment},
            folder=PROJECT,
        )
        with cores.of_the_server():
            self._processes.append(await spawn(command, self.log))
        self.ports.append(port)

    async def ready(self) -> None:
        deadline = time.monotonic() + _START_S
        for process, port in zip(self._processes, self.ports, strict=True):
            while not accepts(port):
                if process.returncode is not None or time.monotonic() > deadline:
                    raise Unfit(f"{self.name} did not start. The end of {self.log}:\n{tail(self.log)}")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def counted(self, metric: str, **labels: str) -> float:
        """The sum of one metric over the processes, from their admin ports."""
        total = 0.0
        wanted = {f'{name}="{value}"' for name, value in labels.items()}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            for port in self.admin_ports:
                async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                for line in lines:
                    name, _, rest = line.partition("{")
                    if name == metric and wanted <= set(rest.rpartition("}")[0].split(",")):
                        total += float(line.rpartition(" ")[2])
        return total


async def start_ours(
    council: BenchCouncil,
    cores: Cores,
    *,
    name: str = "ours",
    processes: int = 1,
    profile: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> Side:
    """`silogate serve` with the council's settings, in as many processes as asked for."""
    side = Side(name, council.root / f"{name}.log")
    for _ in range(processes):
        ports = free_ports(("gateway", "admin"), {})
        settings = {"SILOGATE_PORT": str(ports["gateway"]), "SILOGATE_ADMIN_PORT": str(ports["admin"]), **(more or {})}
        run = ["-m", "gateway.cli", "serve"]
        if profile is not None:
            run = ["-m", "tests.load.sampler", str(profile), "gateway.cli", "serve"]
        # Others choose ports too: each is taken before the next is chosen.
        await side.add(cores, run, council.environment | settings, ports["gateway"])
        side.admin_ports.append(ports["admin"])
        try:
            await side.ready()
        except Unfit:
            await side.stop()
            raise
    return side


async def start_peer(council: BenchCouncil, cores: Cores, module: str, environment: Mapping[str, str]) -> Side:
    """One of tests/load/peers."""
    side = Side(module, council.root / f"{module}.log")
    port = free_ports(("peer",), {})["peer"]
    settings = {"BENCH_PORT": str(port), **environment}
    await side.add(cores, ["-m", f"tests.load.peers.{module}"], settings, port)
    try:
        await side.ready()
    except Unfit:
        await side.stop()
        raise
    return side


async def generate(council: BenchCouncil, side: Side, targets: Path, **job: Any) -> dict[str, Any]:
    """Run the generator against a side to its end and return what it saw."""
    path = council.root / f"job-{side.name}.json"
    heads = [f"Host: 127.0.0.1\r\nAuthorization: Bearer {key}" for key in council.keys]
    whole = {
        "ports": side.ports,
        "pids": side.pids,
        "targets": str(targets),
        "heads": heads,
        "connections": CONNECTIONS,
        **job,
    }
    path.write_text(json.dumps(whole))
    path.chmod(0o600)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_GENERATOR), str(path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), whole["seconds"] + 60)
    except TimeoutError:
        raise Unfit(f"{side.name}: the load did not come to its end\n{tail(side.log)}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Unfit(f"{side.name}: the load failed: {errors.decode()[-600:]}\n{tail(side.log)}")
    seen: dict[str, Any] = json.loads(out)
    return seen


def sample_of(side: Side, seen: Mapping[str, Any]) -> Sample:
    """The numbers of a closed loop, if every answer of it was one."""
    refused = {status: count for status, count in seen["statuses"].items() if status != "200"}
    if refused or seen["errors"] or not seen["requests"]:
        raise Unfit(f"{side.name}: {seen['requests']} answers, refused {refused}, {seen['errors']} errors")
    return Sample(seen["requests"], seen["seconds"], sum(seen["cpu_s"]), seen["hits"])
