"""FastStream with a batch subscriber that acknowledges after the handler.

https://faststream.ag2.ai/latest/kafka/Subscriber/batch_subscriber/ and https://faststream.ag2.ai/latest/kafka/ack/
"""

from __future__ import annotations

import asyncio
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker

from tests.load.peers.job_table import GROUP, KAFKA, TOPIC, JobTable, job_table
from tests.load.streams_start import wait_for_start

broker = KafkaBroker(KAFKA, logger=None)
tables: list[JobTable] = []


@broker.subscriber(
    TOPIC, group_id=GROUP, batch=True, max_records=500, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK
)
async def take(bodies: list[dict[str, Any]]) -> None:
    await tables[0].apply(bodies)


async def main() -> None:
    async with job_table() as table:
        tables.append(table)
        await FastStream(broker, logger=None).run()


if __name__ == "__main__":
    wait_for_start()
    asyncio.run(main())
