"""Ending a Kafka producer that has something on its way and is not waited for any longer."""

import asyncio
import logging

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

log = logging.getLogger(__name__)
_DISCARD_S = 15.0


async def discard(producer: AIOKafkaProducer) -> None:
    """Fails whatever it still holds and closes its connections, whether Kafka answers or not."""
    # An idempotent producer never gives a batch up, so stop() would wait for the broker for ever. What is failed
    # here is not marked: the next producer sends it again.
    producer._message_accumulator.fail_all(KafkaConnectionError("the relay gave this producer up"))  # noqa: SLF001
    try:
        async with asyncio.timeout(_DISCARD_S):
            await producer.stop()
    except Exception as error:  # noqa: BLE001 - whatever closing it raises (aiokafka: KeyError too), it is given up
        log.warning("outbox.producer_not_closed", extra={"error": type(error).__name__})
        await _close_connections(producer)


async def _close_connections(producer: AIOKafkaProducer) -> None:
    """What stop() leaves open when its sender ends badly: one connection an outage, for the life of the process."""
    try:
        async with asyncio.timeout(_DISCARD_S):
            await producer.client.close()
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("outbox.connections_not_closed", extra={"error": type(error).__name__})
