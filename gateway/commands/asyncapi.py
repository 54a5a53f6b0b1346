"""`silogate asyncapi`: what this deployment's topics hold, for whoever reads them without our code."""

from __future__ import annotations

from gateway.console import as_json, fail
from gateway.integrations import read_folders
from gateway.openapi import release
from gateway.settings import Settings
from streams.asyncapi import Topic, document
from streams.topics import RETENTION_MS, changes_topic, group_name


def describe_topics(settings: Settings) -> int:
    """Print the AsyncAPI document; 1 when a folder has a mistake, for then nothing would run."""
    folders = read_folders(settings.integrations, settings.silos)
    if folders.problems:
        fail(*map(str, folders.problems))
    types = [one.case_type for one in folders.integrations if one.case_type is not None]
    names = [f"flow.{one.name}" for one in folders.integrations if one.flow is not None]
    names += sorted({f"recipient.{name}" for one in folders.integrations for name in one.recipients})
    as_json(
        document(
            version=release(),
            bootstrap=[host.strip() for host in settings.kafka_bootstrap.split(",")],
            topic=Topic(
                changes_topic(settings.topic_prefix),
                settings.topic_partitions,
                settings.topic_replication,
                RETENTION_MS,
            ),
            case_types={declared.name: declared.type.schema for declared in types},
            groups=[group_name(settings.topic_prefix, name) for name in names],
        )
    )
    return 0
