"""A relay in a process of its own, for tests that stop it: `python -m tests.integration.relay_process CONFIG`."""

import asyncio
import json
import signal
import sys

import asyncpg
from prometheus_client import CollectorRegistry

from streams import failpoints
from streams.metrics import StreamMetrics
from streams.outbox import Relay, RelayLimits, producer


async def main(config: dict[str, str]) -> None:
    """Publishes until SIGTERM."""
    if config.get("fail"):
        failpoints.arm(config["fail"], config["journal"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    limits = RelayLimits(poll_s=0.1, balance_s=0.2, silence_s=3)
    async with asyncpg.create_pool(
        config["gateway"], min_size=1, max_size=2, server_settings={"search_path": "gateway"}
    ) as pool:
        metrics = StreamMetrics(CollectorRegistry())
        await Relay(pool, lambda: producer(config["bootstrap"], "first"), metrics, limits=limits).run(stop)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
