"""A worker process for tests that kill it: a relay and a consumer that writes into a recipient's own database.

`python -m tests.integration.streams_worker CONFIG` where CONFIG is JSON; SIGTERM drains, a failpoint may kill it.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
from prometheus_client import CollectorRegistry

from streams import failpoints
from streams.consumer import fence
from streams.consumer.consumer import Consumer
from streams.consumer.fence import Fence
from streams.consumer.limits import ConsumerLimits, Retry, SessionTimeouts
from streams.events import CaseEvent
from streams.failpoints import reach
from streams.metrics import StreamMetrics
from streams.outbox import Relay, RelayLimits, producer

LIMITS = ConsumerLimits(
    commit_every_s=0.1,
    resume_every_s=0.2,
    drain_s=1,
    batch_events=5,
    retry=Retry(attempts=1000, first_delay_s=0.05, longest_delay_s=0.3),
    sessions=SessionTimeouts(session_ms=1500, heartbeat_ms=200, rebalance_ms=3000),
)
RECIPIENT_SQL = """
create table job (case_id uuid primary key, version bigint not null);
create table applied (n bigint generated always as identity, case_id uuid not null, version bigint not null);
"""
_UPSERT = """
insert into job (case_id, version) values ($1, $2)
on conflict (case_id) do update set version = excluded.version where job.version < excluded.version
returning case_id
"""


@dataclass(frozen=True)
class StreetTeam:
    """A recipient with tables of its own: the version guards each row, the fence each transaction."""

    recipient: asyncpg.Pool

    async def on_assigned(self, held: Fence) -> None:
        await fence.register(self.recipient, held)

    async def apply(self, events: Sequence[CaseEvent], held: Fence) -> None:
        async with self.recipient.acquire() as connection:
            async with connection.transaction():
                await fence.hold(connection, held)
                for event in events:
                    if await connection.fetchval(_UPSERT, event.case_id, event.version) is not None:
                        await connection.execute(
                            "insert into applied (case_id, version) values ($1, $2)", event.case_id, event.version
                        )
                reach("recipient.before_commit")
            reach("recipient.after_commit")


async def main(config: dict[str, str]) -> None:
    """Works until SIGTERM."""
    if config.get("fail"):
        failpoints.arm(config["fail"], config["journal"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    metrics = StreamMetrics(CollectorRegistry())
    async with (
        asyncpg.create_pool(
            config["gateway"], min_size=1, max_size=4, server_settings={"search_path": "gateway"}
        ) as gateway,
        asyncpg.create_pool(config["recipient"], min_size=1, max_size=2) as recipient,
        asyncio.TaskGroup() as group,
    ):
        relay = Relay(
            gateway,
            lambda: producer(config["bootstrap"], "relay", request_timeout_ms=2000),
            metrics,
            limits=RelayLimits(poll_s=0.1, balance_s=0.2, batch_events=10, ack_timeout_s=3, silence_s=6),
        )
        consumer = Consumer(
            config["bootstrap"],
            config["group"],
            config["topic"],
            StreetTeam(recipient),
            pool=gateway,
            metrics=metrics,
            limits=LIMITS,
        )
        group.create_task(relay.run(stop))
        group.create_task(consumer.run(stop))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
