"""A worker that does nothing but send mail through the ledger, for tests to kill: a process of its own.

Reads one JSON object from its arguments: database, smtp_host, smtp_port, lease_s, and perhaps fail and journal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import Any

from streams import failpoints
from streams.sinks.notifications.smtp import MailServer, SmtpSink
from tests.effects import auditing, ledger, open_pool, templates

SENDER = "Adur & Worthing Councils <no-reply@council.example>"


async def work(options: dict[str, Any]) -> None:
    """Send what is due until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = MailServer(options["smtp_host"], options["smtp_port"])
    sink = SmtpSink(server, SENDER, templates(), timeout_s=20.0, command_timeout_s=10.0)
    async with open_pool(options["database"]) as pool, auditing(pool) as audit:
        await ledger(pool, sink, audit, lease_s=options["lease_s"]).run(stop)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s %(message)s")
    if given.get("fail"):
        failpoints.arm(given["fail"], given.get("journal"))
    asyncio.run(work(given))
