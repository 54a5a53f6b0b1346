"""Where the development servers answer: what the demo and the tests are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Database:
    """One database on the primary, and the same one on the replica."""

    url: str
    replica_url: str


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses of one running set of servers. The Postgres URLs carry a password: never log them."""

    postgres_url: str
    replica_url: str
    redis_url: str
    kafka_bootstrap: str
    smtp_host: str
    smtp_port: int
    maildir: Path

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "maildir": str(self.maildir)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Servers:
        return cls(**{**values, "maildir": Path(values["maildir"])})

    def environment(self) -> dict[str, str]:
        """The same addresses as the settings that `silogate serve`, `work` and `load` read."""
        return {
            "SILOGATE_DATABASE_URL": self.postgres_url,
            "SILOGATE_REPLICA_URLS": self.replica_url,
            "SILOGATE_REDIS_URL": self.redis_url,
            "SILOGATE_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "SILOGATE_SMTP_URL": f"smtp://{self.smtp_host}:{self.smtp_port}",
        }
