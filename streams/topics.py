"""Topics are made on purpose, with a fixed number of partitions: another number would break the order within cases."""

import asyncio
from collections.abc import Iterable

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

RETENTION_MS = 7 * 24 * 3600 * 1000


def group_name(prefix: str, part: str) -> str:
    """The consumer group of one part of a worker, such as `recipient.street-team`."""
    return f"{prefix}silogate.{part}"


def changes_topic(prefix: str) -> str:
    """The topic of what happens to cases; its key is the case's id."""
    return f"{prefix}cases.changes.v1"


def effects_topic(prefix: str) -> str:
    """The topic of what became of effects; its key is the case's id."""
    return f"{prefix}cases.effects.v1"


def dead_letter_topic(source: str, group: str) -> str:
    """The topic that mirrors what a group parks. It needs as many partitions as `source`, or a case's order is lost."""
    return f"{source}.{group}.dlq"


async def ensure_topics(
    bootstrap: str,
    names: Iterable[str],
    partitions: int,
    replication: int,
    *,
    retention_ms: int = RETENTION_MS,
    timeout_s: float = 30.0,
) -> list[str]:
    """Makes the topics that are missing and returns their names; one that exists is left as it is.

    Any number of processes may call it at once. Never compacted: every version of a case is kept for `retention_ms`.
    """
    configuration = {"cleanup.policy": "delete", "retention.ms": str(retention_ms)}
    wanted = [
        NewTopic(name, num_partitions=partitions, replication_factor=replication, topic_configs=configuration)
        for name in names
    ]
    async with asyncio.timeout(timeout_s):
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            await admin.start()
            response = await admin.create_topics(wanted, timeout_ms=int(timeout_s * 1000))
        finally:
            await admin.close()
    made = []
    for name, code, *_ in response.topic_errors:
        error = for_code(code)
        if code == 0:
            made.append(name)
        elif error is not TopicAlreadyExistsError:
            raise error(f"topic {name} could not be made")
    return made
