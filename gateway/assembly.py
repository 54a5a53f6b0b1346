"""What `serve`, `work` and `load` build alike: folders, keys, the database brought to shape, and the cases on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from aiokafka.errors import KafkaError

from cache.seal import KeyRing
from cache.values import Tagger
from gateway.database import CONNECT_TIMEOUT_S, gateway_pool
from gateway.declarations import Integration
from gateway.integrations import Folders, read_folders, tagger_of, value_types
from gateway.settings import InvalidSettings, Settings
from streams import failpoints, topics
from streams.cases.cases import Cases
from streams.cases.keys import CaseKeys
from streams.outages import DATABASE_ERRORS
from streams.silos.schema import prepare as prepare_silo
from streams.sql.migrate import migrate

_PREPARE_TIMEOUT_S = 120.0


class NotReady(Exception):
    """The process cannot start; `problems` says what to mend, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that every process has."""

    settings: Settings
    folders: Folders
    ring: KeyRing
    taggers: dict[str, Tagger]
    pool: asyncpg.Pool
    keys: CaseKeys
    cases: Cases

    @property
    def integrations(self) -> list[Integration]:
        return self.folders.integrations

    @property
    def topic(self) -> str:
        """The topic of case events."""
        return changes_topic(self.settings)


def changes_topic(settings: Settings) -> str:
    """Name the topic of case events, with the deployment's prefix."""
    return topics.changes_topic(settings.topic_prefix)


async def ensure_topics(assembly: Assembly, *more: str) -> None:
    """Make the topics of case events, of effects' outcomes, and more; raises NotReady while Kafka cannot be used."""
    settings = assembly.settings
    names = [assembly.topic, topics.effects_topic(settings.topic_prefix), *more]
    try:
        await topics.ensure_topics(
            settings.kafka_bootstrap, names, settings.topic_partitions, settings.topic_replication
        )
    except (KafkaError, OSError, TimeoutError) as error:
        raise NotReady(
            [f"Kafka cannot be used at SILOGATE_KAFKA_BOOTSTRAP ({type(error).__name__}); `silogate doctor` says more"]
        ) from None


@asynccontextmanager
async def assembled(settings: Settings, *, name: str, connections: int) -> AsyncIterator[Assembly]:
    """Check the folders, bring the database to shape and build the common parts; raises NotReady or InvalidSettings."""
    if settings.fail is not None:
        failpoints.arm(settings.fail, settings.fail_journal)
    folders = read_folders(settings.integrations, settings.silos)
    if folders.problems:
        raise NotReady([str(problem) for problem in folders.problems])
    ring = _ring(settings)
    try:
        await prepare(settings, folders)
    except DATABASE_ERRORS as error:
        # never the driver's whole text: an address may hold a password
        raise NotReady([f"PostgreSQL cannot be used ({type(error).__name__}); `silogate doctor` says more"]) from None
    taggers = {silo: tagger_of(found, ring.hmac_key, ring.hmac_key_id) for silo, found in folders.silos.items()}
    async with gateway_pool(settings, size=connections, name=name) as pool:
        keys = CaseKeys(ring, _case_sealer)
        types = {one.case_type.name: one.case_type.type for one in folders.integrations if one.case_type is not None}
        cases = Cases(pool, keys, types, topic=changes_topic(settings))
        yield Assembly(settings, folders, ring, taggers, pool, keys, cases)


async def prepare(settings: Settings, folders: Folders) -> None:
    """Bring the gateway's schema and each silo's to their newest shape; any number of processes may do it at once."""
    connection = await asyncpg.connect(
        settings.database_url.get_secret_value(), timeout=CONNECT_TIMEOUT_S, command_timeout=_PREPARE_TIMEOUT_S
    )
    try:
        await migrate(connection)
        types = value_types()
        for declaration in folders.silos.values():
            await prepare_silo(connection, declaration, types, role=settings.lookup_role)
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


def _ring(settings: Settings) -> KeyRing:
    try:
        return KeyRing.parse(settings.key_ring.get_secret_value())
    except ValueError as error:
        raise InvalidSettings([f"SILOGATE_KEY_RING: {error}"]) from None


def _case_sealer(key: bytes) -> KeyRing:
    return KeyRing({1: key}, 1)
