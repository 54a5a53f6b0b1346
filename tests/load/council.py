"""The council that is measured: one silo of made-up addresses on real servers, keys, and `silogate serve` itself."""

from __future__ import annotations

import base64
import datetime as dt
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from cache.seal import KeyRing
from cache.values import Tagger
from gateway.auth import ApiKeys
from gateway.dev.addresses import Servers
from gateway.dev.stack import PROJECT
from gateway.integrations import read_folders, tagger_of, value_types
from streams.silos.applier import advance, read_position
from streams.silos.declaration import SiloDeclaration
from streams.silos.schema import prepare
from streams.sql.migrate import migrate

SILO = "gazetteer"
ROWS_A_POSTCODE = 20
KEYS = 16
_DECLARED = Path(__file__).with_name("declared")
_TEMPLATE = PROJECT / "deploy" / "integrations" / "report-a-problem"
_INWARD = "ABDEFGHJLNPQRSTUWXYZ"
_AREAS = "ABCDEFGHKLMNOPQRSTUVWXY"
_FIRST_UPRN = 999_900_000_001
_STREETS = ("Crabtree Lane", "Upper Shoreham Road", "Brighton Road", "Middle Street", "West Beach Road")


def postcode(n: int) -> str:
    """The n-th postcode; the areas ZA to ZY are nobody's."""
    n, c = divmod(n, 20)
    n, b = divmod(n, 20)
    n, digit = divmod(n, 10)
    area, district = divmod(n, 9)
    return f"Z{_AREAS[area]}{district + 1} {digit}{_INWARD[b]}{_INWARD[c]}"


def address(n: int, place: int, version: int = 0) -> str:
    """What stands at one place of a postcode, and since which change."""
    street = _STREETS[n % len(_STREETS)]
    mark = f", as of {version}" if place == 0 else ""
    return f"SYNTHETIC {place + 1:02d} {street}, Flat {n % 90 + 10}, Lancing, West Sussex{mark}"


def rows_of(n: int) -> list[dict[str, Any]]:
    """The answer to the n-th postcode before any change: what every side has to say."""
    return [
        {
            "uprn": str(_FIRST_UPRN + n * ROWS_A_POSTCODE + place),
            "address": address(n, place),
            "postcode": postcode(n),
            "easting": 500_000 + n % 50_000,
            "northing": 100_000 + place,
        }
        for place in range(ROWS_A_POSTCODE)
    ]


def premises_row(n: int) -> dict[str, Any]:
    """The answer to the n-th UPRN."""
    return {"uprn": str(_FIRST_UPRN + n), "address": f"SYNTHETIC {n:07d} {_STREETS[n % 5]}, Lancing, West Sussex"}


@dataclass(frozen=True)
class BenchCouncil:
    """An established council: its settings, which hold secrets, and what a test may do to its silo."""

    root: Path
    servers: Servers
    environment: dict[str, str]
    keys: tuple[str, ...]
    tagger: Tagger
    declaration: SiloDeclaration
    postcodes: int
    premises: int

    @asynccontextmanager
    async def primary(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the silo's tables as the applier has one."""
        connection = await asyncpg.connect(
            self.servers.postgres_url,
            timeout=10,
            command_timeout=120,
            server_settings={"search_path": self.declaration.schema_name},
        )
        try:
            yield connection
        finally:
            await connection.close(timeout=10)

    def targets(self, kind: str) -> Path:
        """A file of request targets, a line each: `postcodes`, `premises`, or `again`, which no test fills before."""
        return self.root / f"{kind}.targets"


async def establish(servers: Servers, root: Path, *, postcodes: int, premises: int = 0) -> BenchCouncil:
    """Make the council in an empty database: schema, sixteen keys, and the silo loaded by COPY."""
    folders = _folders(root)
    ring = KeyRing.parse(ring_text := f"1:{base64.b64encode(secrets.token_bytes(32)).decode()}")
    found = read_folders(folders / "integrations", folders / "silos")
    if found.problems:
        raise AssertionError([str(problem) for problem in found.problems])
    tagger = tagger_of(found.silos[SILO], ring.hmac_key, ring.hmac_key_id)
    async with asyncpg.create_pool(
        servers.postgres_url, min_size=1, max_size=1, server_settings={"search_path": "gateway"}
    ) as pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        keys = ApiKeys(pool)
        scopes = ("lookups:addresses-of-postcode", "lookups:premises-by-uprn")
        # A key has a rate: an operator gives busy forms keys of their own, and so does this council.
        tokens = [await keys.add(f"form {n}", scopes) for n in range(KEYS)]
    environment = {
        **servers.environment(),
        "SILOGATE_KEY_RING": ring_text,
        "SILOGATE_INTEGRATIONS": str(folders / "integrations"),
        "SILOGATE_SILOS": str(folders / "silos"),
        "SILOGATE_BLOBS": str(root / "blobs"),
        "SILOGATE_REPORTS": str(root / "reports"),
        "SILOGATE_TOPIC_PREFIX": f"bench{secrets.token_hex(4)}.",
        "SILOGATE_TOPIC_PARTITIONS": "4",
        "SILOGATE_LOG_FORMAT": "json",
    }
    council = BenchCouncil(root, servers, environment, tuple(tokens), tagger, found.silos[SILO], postcodes, premises)
    await _fill(council)
    _write_targets(council)
    return council


def _folders(root: Path) -> Path:
    """The bench's silo and lookups in an integration whose case type, flow and templates are the project's own."""
    made = root / "declared"
    shutil.copytree(_DECLARED / "silos", made / "silos")
    bench = made / "integrations" / _TEMPLATE.name
    shutil.copytree(_TEMPLATE, bench, ignore=shutil.ignore_patterns("lookups"))
    shutil.copytree(_DECLARED / "lookups", bench / "lookups")
    lines = (bench / "integration.yaml").read_text(encoding="utf-8").splitlines()
    lines = [f"silos: [{SILO}]" if line.startswith("silos:") else line for line in lines]
    (bench / "integration.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


async def _fill(council: BenchCouncil) -> None:
    """The tables as one complete load leaves them: rows, a load, and an epoch of this tagger's definition."""
    now = dt.datetime.now(dt.UTC)
    async with council.primary() as connection:
        await prepare(connection, council.declaration, value_types())
        async with connection.transaction():
            await connection.copy_records_to_table(
                "address",
                records=_address_records(council.postcodes),
                columns=["uprn", "postcode", "address", "easting", "northing"],
            )
            await connection.copy_records_to_table(
                "premises", records=_premises_records(council.premises), columns=["uprn", "address"]
            )
            await connection.execute(
                "insert into load (source_time, started, completed, added, changed, removed, rejected)"
                " values ($1, $1, clock_timestamp(), $2, 0, 0, 0)",
                now,
                council.postcodes * ROWS_A_POSTCODE + council.premises,
            )
            seen = await read_position(connection)
            await advance(connection, seen, None, definition=council.tagger.definition, source_position={})
        await connection.execute("vacuum analyze address, premises")


def _address_records(postcodes: int) -> Iterator[tuple[Any, ...]]:
    for n in range(postcodes):
        for row in rows_of(n):
            yield int(row["uprn"]), row["postcode"], row["address"], row["easting"], row["northing"]


def _premises_records(premises: int) -> Iterator[tuple[Any, ...]]:
    for n in range(premises):
        row = premises_row(n)
        yield int(row["uprn"]), row["address"]


def _write_targets(council: BenchCouncil) -> None:
    path = "/v1/lookups/addresses-of-postcode?postcode="
    lines = [path + postcode(n).replace(" ", "%20") for n in range(council.postcodes)]
    council.targets("postcodes").write_text("\n".join(lines))
    uprns = [f"/v1/lookups/premises-by-uprn?uprn={_FIRST_UPRN + n}" for n in range(council.premises)]
    council.targets("premises").write_text("\n".join(uprns))
