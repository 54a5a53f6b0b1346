"""The Kafka client of one membership: what it is told differs from what aiokafka would do by itself."""

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from streams.consumer.limits import ConsumerLimits


def group_client(bootstrap: str, group: str, client_id: str, limits: ConsumerLimits) -> AIOKafkaConsumer:
    """A client that commits nothing by itself and goes nowhere by itself; not started."""
    sessions = limits.sessions
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        client_id=client_id,
        group_id=group,
        enable_auto_commit=False,
        # Where to begin is found out here (`position`); aiokafka would go to the end or the beginning and say nothing.
        auto_offset_reset="none",
        # Exactly one: with several, aiokafka joins once for each of them.
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        session_timeout_ms=sessions.session_ms,
        heartbeat_interval_ms=sessions.heartbeat_ms,
        rebalance_timeout_ms=sessions.rebalance_ms,
        max_poll_interval_ms=sessions.max_poll_ms,
        request_timeout_ms=sessions.request_ms,
        metadata_max_age_ms=30_000,
        fetch_max_bytes=limits.fetch_bytes,
        max_partition_fetch_bytes=min(limits.fetch_bytes, 1024 * 1024),
    )
