"""Everything an operator sets: read once, frozen, passed as arguments.

A setting `database_url` is the environment variable `SILOGATE_DATABASE_URL`, or the same name without the prefix in the
TOML file that `SILOGATE_CONFIG` names, or the content of the file that `SILOGATE_DATABASE_URL_FILE` names (secrets
mounted as files). The environment wins over the file. Unknown names are errors: a typing mistake never goes unnoticed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from streams.durations import Duration, Size

PREFIX = "SILOGATE_"
_RECIPIENT = re.compile(r"^RECIPIENT_([A-Z0-9_]+)_URL$")
# Read by others than this module: the config file itself and the switches of the test suite.
_CONFIG = "CONFIG"
_OF_THE_TESTS = "TEST_"


class InvalidSettings(Exception):
    """Settings that cannot be used; `problems` names each setting and its fix, and never a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _by_name(value: object) -> object:
    """Read `email=500,letters=50`."""
    if not isinstance(value, str):
        return value
    found = {}
    for part in value.split(","):
        name, equals, number = part.partition("=")
        if part.strip() and not (name.strip() and equals and number.strip().isdigit()):
            raise ValueError("is not of the form name=number,name=number")
        if part.strip():
            found[name.strip()] = int(number)
    return found


def _address(example: str, *schemes: str) -> AfterValidator:
    def fits(url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"is not an address of the form {example}")
        return url

    return AfterValidator(fits)


PostgresUrl = Annotated[SecretStr, _address("postgresql://user:password@host:5432/database", "postgresql", "postgres")]
RedisUrl = Annotated[SecretStr, _address("redis://host:6379/0", "redis", "rediss")]
SmtpUrl = Annotated[SecretStr, _address("smtp://host:25", "smtp", "smtp+starttls", "smtps")]


class Settings(BaseModel):
    """One process's settings. Durations are seconds, sizes are bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: PostgresUrl = Field(description="PostgreSQL primary: gateway schema and silo replicas")
    replica_urls: Annotated[tuple[PostgresUrl, ...], BeforeValidator(_split)] = Field(
        default=(), description="streaming read replicas of it, separated by commas; none: the primary answers lookups"
    )
    lookup_role: str = Field(default="silogate_lookup", description="role that lookups run as; it may only read")
    redis_url: RedisUrl = Field(description="Redis 6.2 or newer, or Valkey")
    kafka_bootstrap: str = Field(description="host:port of the brokers, separated by commas")
    kafka_session_timeout: Duration = Field(default=45.0, description="how soon a dead worker's partitions move")
    topic_prefix: str = Field(default="", description="put before each topic and consumer group name")
    topic_partitions: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=12, description="partitions of a new topic; never change it later: cases would change their lane"
    )
    topic_replication: Annotated[int, Field(ge=1, le=9)] = Field(default=1, description="copies of a new topic")
    smtp_url: SmtpUrl = Field(
        description="smtp://host[:port], smtp+starttls://user:password@host or smtps://user:password@host"
    )
    smtp_from: str = Field(default="no-reply@council.example", description="sender of e-mails")
    key_ring: SecretStr = Field(
        description="keys that seal personal data, `1:base64,2:base64`, the newest last; `silogate keys ring` makes one"
    )
    integrations: Path = Field(default=Path("deploy/integrations"), description="folder of integration folders")
    silos: Path = Field(default=Path("deploy/silos"), description="folder of silo folders")
    silo_files: Path | None = Field(default=None, description="folders of source files by silo name; none: the silos")
    blobs: Path = Field(default=Path(".silogate/blobs"), description="folder of attachments, by content hash")
    reports: Path = Field(default=Path(".silogate/reports"), description="folder of the rejects reports of loads")
    recipients: Mapping[str, PostgresUrl] = Field(
        default_factory=dict, description="database of each recipient: SILOGATE_RECIPIENT_<NAME>_URL"
    )
    host: str = Field(default="127.0.0.1", description="address of the public port")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8080, description="public port")
    admin_host: str = Field(default="127.0.0.1", description="address of the admin port")
    admin_port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8081, description="admin port of `serve`")
    worker_port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8082, description="admin port of `work`")
    lookup_timeout: Duration = Field(default=2.0, description="deadline of one lookup")
    write_timeout: Duration = Field(default=10.0, description="deadline of every other request")
    shutdown_grace: Duration = Field(default=20.0, description="how long a stop waits for what is in flight")
    lookup_rate: Annotated[float, Field(gt=0)] = Field(
        default=5000.0, description="lookups a second that one API key may ask of one process; twice that at once"
    )
    l1_entries: Annotated[int, Field(ge=0)] = Field(
        default=0, description="answers of each silo that a process keeps in memory, kept right by Redis; 0: none"
    )
    l1_bytes: Size = Field(default=64 * 1024**2, description="the most that those answers may take for each silo")
    max_in_flight: Annotated[int, Field(ge=1)] = Field(default=1000, description="requests at once; more are shed")
    json_body_cap: Size = Field(default=256 * 1024, description="largest JSON body")
    attachment_cap: Size = Field(default=8 * 1024**2, description="largest attachment")
    dlq_mirror: bool = Field(
        default=True, description="copy parked events to the topic `<topic>.<group>.dlq` of their group"
    )
    canary_every: Duration = Field(
        default=10.0,
        description="how often a worker changes each silo's canary row, which the sentinel reads; 0s: never",
    )
    effect_lease: Duration = Field(default=60.0, description="how long a worker may hold an effect")
    effects_per_hour: Annotated[Mapping[str, Annotated[int, Field(ge=0)]], BeforeValidator(_by_name)] = Field(
        default_factory=dict, description="most acts of a sink in an hour, `email=500`; a sink without one has no limit"
    )
    effects_first_run: Literal["hold", "go"] = Field(
        default="hold",
        description="hold: more than 50 effects for a sink that never acted wait for `silogate effects release`",
    )
    park_after: Annotated[int, Field(ge=1)] = Field(default=8, description="attempts before a case is parked")
    log_format: Literal["auto", "json", "console"] = Field(default="auto", description="auto: console on a terminal")
    access_log_every: Annotated[int, Field(ge=1)] = Field(
        default=100, description="one line for every so many answered lookups; refusals and faults are always logged"
    )
    fail: str | None = Field(default=None, description="failpoints of the test suite; leave it unset")
    fail_journal: str | None = Field(default=None, description="address of the failpoint journal; leave it unset")

    @property
    def replicas(self) -> tuple[str, ...]:
        """The replica addresses, ready for a driver; the primary's own when there is none."""
        return tuple(url.get_secret_value() for url in self.replica_urls) or (self.database_url.get_secret_value(),)

    @property
    def source_files(self) -> Path:
        """The folder that holds each silo's source files in a folder of its name."""
        return self.silo_files or self.silos


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Reads environment, config file and secret files; raises InvalidSettings with every problem at once."""
    environment = os.environ if environment is None else environment
    values, problems = _from_file(environment.get(PREFIX + _CONFIG))
    recipients = dict(values.get("recipients", {}))
    for name, text in environment.items():
        short = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and short != _CONFIG and not short.startswith(_OF_THE_TESTS):
            _take(name, text, values, recipients, problems)
    if recipients:
        values["recipients"] = recipients
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [
            _sentence(dict(item))
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    if problems:
        raise InvalidSettings(problems)
    return settings


def _from_file(path: str | None) -> tuple[dict[str, Any], list[str]]:
    if path is None:
        return {}, []
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"SILOGATE_CONFIG: {path} cannot be read: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"SILOGATE_CONFIG: {path} is not TOML: {error}"]
    unknown = [name for name in values if name not in Settings.model_fields]
    problems = [_unknown(f"{path}: {name}", name) for name in unknown]
    if not isinstance(values.get("recipients", {}), dict):
        unknown.append("recipients")
        problems.append(f'{path}: recipients is not a table; write [recipients] with one `name = "address"` a line')
    return {name: value for name, value in values.items() if name not in unknown}, problems


def _take(name: str, text: str, values: dict[str, Any], recipients: dict[str, str], problems: list[str]) -> None:
    short = name.removeprefix(PREFIX)
    if short.endswith("_FILE") and short.removesuffix("_FILE") and short.lower() not in Settings.model_fields:
        short = short.removesuffix("_FILE")
        try:
            text = Path(text).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            problems.append(f"{name}: the file it names cannot be read; check the path and its permissions")
            return
    if match := _RECIPIENT.match(short):
        recipients[match[1].lower().replace("_", "-")] = text
    elif short.lower() in Settings.model_fields:
        values[short.lower()] = text
    else:
        problems.append(_unknown(name, short.lower()))


def _unknown(shown: str, name: str) -> str:
    near = difflib.get_close_matches(name, [*Settings.model_fields, _CONFIG.lower()], 1)
    hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else "; `silogate settings` lists them all"
    return f"{shown} is not a setting{hint}"


def _sentence(error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    name = PREFIX + path[0].upper()
    if path[0] == "recipients" and len(path) > 1:
        name = f"{PREFIX}RECIPIENT_{path[1].upper().replace('-', '_')}_URL"
    if error["type"] == "missing":
        return f"{name} is not set: {Settings.model_fields[path[0]].description}"
    return f"{name}: {str(error['msg']).removeprefix('Value error, ')}"
