"""deploy/compose.yaml can only be run where containers can: here everything else about it is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import read_settings

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_COMPOSE: dict[str, Any] = yaml.safe_load((_DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
_SERVICES: dict[str, dict[str, Any]] = _COMPOSE["services"]
_DOCKERFILE = (_DEPLOY / "Dockerfile").read_text(encoding="utf-8")
_RING = "1:" + "A" * 43 + "="


def _filled_in(text: object) -> str:
    """A value as compose hands it over, with something for each variable of the caller's environment."""
    values = {"SILOGATE_KEY_RING": _RING}
    return re.sub(r"\$\{(\w+)[^}]*\}", lambda found: values.get(found[1], "secret"), str(text))


def test_the_set_is_complete() -> None:
    """The same servers as `silogate dev` starts, with the gateway and its worker."""
    assert set(_SERVICES) == {"gateway", "worker", "load", "postgres", "replica", "valkey", "kafka", "mail"}
    assert _SERVICES["gateway"]["command"] == ["serve"]
    assert _SERVICES["worker"]["command"] == ["work"]


@pytest.mark.parametrize("name", _SERVICES)
def test_a_service_is_pinned_unprivileged_and_watched(name: str) -> None:
    """Each image has a version, each service a user that is not root, and each that stays a health check."""
    service = _SERVICES[name]
    assert re.search(r":\d+\.\d+", service["image"])
    assert str(service["user"]).split(":")[0] not in {"root", "0"}
    assert "privileged" not in service
    if "profiles" not in service:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["gateway", "worker", "load"])
def test_the_settings_are_known_and_valid(name: str) -> None:
    """What compose sets is what the settings know: a name that changes there must change here."""
    environment = {key: _filled_in(value) for key, value in _SERVICES[name]["environment"].items()}
    settings = read_settings(environment)
    assert settings.replicas == ("postgresql://silogate:secret@replica:5432/silogate",)
    assert set(settings.recipients) == {"street-team", "contractor"}


def test_every_host_is_a_service() -> None:
    """An address inside the set names one of its services."""
    addresses = _COMPOSE["x-addresses"]
    hosts = {found for text in addresses.values() for found in re.findall(r"(?:@|//)([a-z]+):\d+", _filled_in(text))}
    assert hosts == {"postgres", "replica", "valkey", "mail"}
    assert addresses["SILOGATE_KAFKA_BOOTSTRAP"].split(":")[0] in _SERVICES


def test_no_secret_is_written_down() -> None:
    """Passwords and keys come from the caller's environment, and compose says so when they do not."""
    text = (_DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.search(r"PASSWORD:|KEY_RING:|://silogate:", line):
            assert re.search(r"\$\{\w+:\?", line), line


def test_what_is_named_is_there() -> None:
    """Volumes, configs and mounted folders exist, and so do the build's targets and what it copies."""
    for service in _SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (_DEPLOY / source).is_dir() if source.startswith(".") else source in _COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in _COMPOSE["configs"]
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in _DOCKERFILE
    for path in re.findall(r"/recipients/(\S+\.sql)", _COMPOSE["configs"]["first-start"]["content"]):
        assert (_DEPLOY / "integrations" / "report-a-problem" / "recipients" / path).is_file()
    for line in _copied():
        assert (_DEPLOY.parent / line).exists(), line


def test_the_images_run_as_nobody_special() -> None:
    """Both images end as a user without rights, and are made from a base with a version."""
    final = _DOCKERFILE.split("\nFROM ")[2:]
    assert all("\nUSER 10001\n" in stage for stage in final)
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in re.findall(r"FROM (\S+)", _DOCKERFILE))


def _copied() -> Iterator[str]:
    for line in re.findall(r"^COPY (?!--)(.*)$", _DOCKERFILE, re.MULTILINE):
        yield from line.split()[:-1]
