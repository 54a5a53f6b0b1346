"""A whole council on given servers: its databases, the recipients' own databases, source files, keys and settings.

The demo and the tests establish one, and start its processes (`silogate serve`, `work`, `load`) as they need them.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from gateway.auth import ApiKeys
from gateway.dev.addresses import Servers
from gateway.dev.children import Child
from gateway.dev.desks import DESKS
from gateway.dev.ports import free_ports
from gateway.dev.stack import PROJECT
from gateway.dev.synthetic import stock
from streams.sql.migrate import migrate

INTEGRATIONS = PROJECT / "deploy" / "integrations"
SILOS = PROJECT / "deploy" / "silos"
LOADED = ("assets", "addresses", "claims")
_RECIPIENTS = INTEGRATIONS / "report-a-problem" / "recipients"
_LOAD_S = 120.0

WEBSITE = (
    "lookups:addresses-by-postcode",
    "lookups:assets-near",
    "lookups:asset-by-uprn",
    "lookups:asset-already-reported",
    "lookups:asset-with-reports",
    "lookups:assets-near-position",
    "lookups:streets-by-prefix",
    "cases:read",
    "cases:write",
    "events:read",
)
BENEFITS = ("lookups:claim-already-open", "lookups:known-details")
OPERATOR = ("admin:read",)


@dataclass(frozen=True, slots=True)
class Council:
    """One established council: `environment` holds every setting of its processes, and so its secrets."""

    root: Path
    environment: dict[str, str]
    ports: dict[str, int]
    website_key: str
    benefits_key: str
    operator_key: str
    recipient_urls: dict[str, str]

    @property
    def files(self) -> Path:
        """The folder of the silos' source files."""
        return self.root / "files"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def address(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    async def load(self, silos: Sequence[str] = LOADED) -> None:
        """Load silos by `silogate load`, side by side; raises ChildFailed with the end of its log."""
        async with asyncio.TaskGroup() as loads:
            for name in silos:
                loads.create_task(self._load(name))

    async def start(self, command: str, extra: dict[str, str] | None = None) -> Child:
        """Start `silogate serve` or `silogate work`, with more settings if given."""
        environment = {**self.environment, **(extra or {})}
        return await Child.start(f"silogate {command}", (command,), environment, self.logs / f"{command}.log")

    async def _load(self, name: str) -> None:
        log = self.logs / f"load-{name}.log"
        child = await Child.start(f"silogate load {name}", ("load", name), self.environment, log)
        await child.finish(_LOAD_S)


async def establish(servers: Servers, root: Path, ports: dict[str, int], *, database_prefix: str = "") -> Council:
    """Make the gateway's schema, each recipient's database as its own supplier made it, the files and three API keys.

    `root` exists. `ports` maps gateway, admin, worker and more to wanted ports; for 0, or one that is taken, another is
    found.
    """
    (root / "logs").mkdir(exist_ok=True)
    recipients = {
        desk.name: urlunsplit(urlsplit(servers.postgres_url)._replace(path=f"/{database_prefix}{desk.database}"))
        for desk in DESKS
    }
    await asyncio.to_thread(stock, root / "files", SILOS)
    async with asyncpg.create_pool(
        servers.postgres_url, min_size=1, max_size=2, server_settings={"search_path": "gateway"}
    ) as pool:
        await _make_databases(pool, recipients)
        keys = ApiKeys(pool)
        website = await keys.add("council website", WEBSITE)
        benefits = await keys.add("benefits form", BENEFITS)
        operator = await keys.add("duty officer", OPERATOR)
    found = free_ports(ports, {name: port for name, port in ports.items() if port})
    environment = _environment(root, servers, found, recipients)
    return Council(root, environment, found, website, benefits, operator, recipients)


async def _make_databases(pool: asyncpg.Pool, recipients: dict[str, str]) -> None:
    async with pool.acquire() as connection:
        await migrate(connection)
        for url in recipients.values():
            # A name of ours, not anybody's input; a name cannot be a parameter.
            await connection.execute(f'create database "{urlsplit(url).path[1:]}"', timeout=60)
    for name, url in recipients.items():
        schema = (_RECIPIENTS / f"{name}.schema.sql").read_text(encoding="utf-8")
        theirs = await asyncpg.connect(url, timeout=10)
        try:
            await theirs.execute(schema, timeout=60)
        finally:
            await theirs.close()


def _environment(root: Path, servers: Servers, ports: dict[str, int], recipients: dict[str, str]) -> dict[str, str]:
    return {
        **servers.environment(),
        **{f"SILOGATE_RECIPIENT_{name.upper().replace('-', '_')}_URL": url for name, url in recipients.items()},
        "SILOGATE_KEY_RING": f"1:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        "SILOGATE_INTEGRATIONS": str(INTEGRATIONS),
        "SILOGATE_SILOS": str(SILOS),
        "SILOGATE_SILO_FILES": str(root / "files"),
        "SILOGATE_BLOBS": str(root / "blobs"),
        "SILOGATE_REPORTS": str(root / "reports"),
        "SILOGATE_SMTP_FROM": "no-reply@sample-borough.example",
        "SILOGATE_PORT": str(ports["gateway"]),
        "SILOGATE_ADMIN_PORT": str(ports["admin"]),
        "SILOGATE_WORKER_PORT": str(ports["worker"]),
        "SILOGATE_KAFKA_SESSION_TIMEOUT": "10s",
        "SILOGATE_LOG_FORMAT": "json",
        "SILOGATE_EFFECTS_FIRST_RUN": "go",
    }
