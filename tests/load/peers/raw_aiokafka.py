"""aiokafka by hand: a batch, the upsert, the commit, as its documentation shows for manual commits.

https://aiokafka.readthedocs.io/en/stable/examples/manual_commit.html
"""

from __future__ import annotations

import asyncio

import orjson
from aiokafka import AIOKafkaConsumer

from tests.load.peers.job_table import GROUP, KAFKA, TOPIC, job_table
from tests.load.streams_start import wait_for_start


async def main() -> None:
    async with job_table() as table:
        consumer = AIOKafkaConsumer(
            TOPIC, bootstrap_servers=KAFKA, group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            while True:
                batches = await consumer.getmany(timeout_ms=1000, max_records=500)
                bodies = [orjson.loads(record.value) for records in batches.values() for record in records]
                if bodies:
                    await table.apply(bodies)
                    await consumer.commit()
        finally:
            await consumer.stop()


if __name__ == "__main__":
    wait_for_start()
    asyncio.run(main())
