"""Our side of P7: the consumer and the recipient as `silogate work` wires them, without the other parts of a worker."""

from __future__ import annotations

import asyncio
import base64
import os
import signal

import asyncpg
from prometheus_client import CollectorRegistry

from gateway.collector import spare_the_collector
from streams.cases.keys import CaseKeys
from streams.consumer.consumer import Consumer
from streams.metrics import StreamMetrics
from streams.recipients.database import RecipientDatabase
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.postgres import PostgresRecipient
from streams.testing import PlainKeySealer
from tests.load.bench_mapping import declared
from tests.load.streams_start import wait_for_start


async def main() -> None:
    """Consumes until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    registry = CollectorRegistry()
    mapping = declared(is_personal=True)
    database = RecipientDatabase(os.environ["BENCH_RECIPIENT"], mapping)
    keys = CaseKeys(PlainKeySealer(base64.b64decode(os.environ["BENCH_RING"])), PlainKeySealer)
    async with asyncpg.create_pool(
        os.environ["BENCH_GATEWAY"], min_size=1, max_size=8, server_settings={"search_path": "gateway"}
    ) as pool:
        name = mapping.declaration.recipient
        handler = PostgresRecipient(
            mapping.declaration, database, keys=keys, gateway_pool=pool, metrics=RecipientMetrics(registry, [name])
        )
        consumer = Consumer(
            os.environ["BENCH_KAFKA"],
            os.environ["BENCH_GROUP"],
            os.environ["BENCH_TOPIC"],
            handler,
            pool=pool,
            metrics=StreamMetrics(registry),
        )
        try:
            await consumer.run(stop)
        finally:
            await database.close()


if __name__ == "__main__":
    spare_the_collector()  # as a worker does when it has started
    wait_for_start()
    asyncio.run(main())
