"""Kafka is made of exactly the jars in the lock file, and of no other."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.dev.jars import LOCK, Fetch, Jar, WrongJar, jar_folder, read_lock

_CONTENT = b"a jar"
_JAR = Jar("uk.silogate", "test", "1.0", hashlib.sha256(_CONTENT).hexdigest())


def test_the_lock_names_the_broker_and_its_logging_binding_once_each() -> None:
    """The lock holds one version of each jar with its SHA-256, the broker's first, and names no host."""
    jars = read_lock()
    assert jars[0].filename == "kafka_2.13-4.2.0.jar"
    assert jars[-1].artifact == "log4j-slf4j-impl"
    assert len({jar.artifact for jar in jars}) == len(jars) == 46
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert "://" not in LOCK.read_text(encoding="utf-8")


def test_a_jar_that_is_there_is_verified_and_not_fetched(tmp_path: Path) -> None:
    """Nothing is fetched, and nobody told of progress, when every jar is there already."""
    told: list[str] = []
    (tmp_path / _JAR.filename).write_bytes(_CONTENT)
    assert Fetch(tmp_path, told.append).obtain((_JAR,)) == (tmp_path / "test-1.0.jar",)
    assert told == []


def test_a_wrong_jar_is_refused(tmp_path: Path) -> None:
    """A jar that was changed since is not used; the message names it, and says what to do."""
    (tmp_path / _JAR.filename).write_bytes(_CONTENT + b" with something in it")
    with pytest.raises(WrongJar, match=r"test-1\.0\.jar is not the .* Kafka was not started\. Delete the file"):
        Fetch(tmp_path, lambda _text: None).obtain((_JAR,))


def test_a_wrong_jar_from_the_network_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives with another SHA-256 is refused before it gets the name under which it would be used."""

    def wrong(self: object) -> Path:
        path = next(tmp_path.glob(".fetch-*")) / "test-1.0.jar"
        path.write_bytes(b"something else")
        return path

    monkeypatch.setattr("jgo.maven._core.Artifact.resolve", wrong)
    with pytest.raises(WrongJar, match="wanted"):
        Fetch(tmp_path, lambda _text: None).obtain((_JAR,))
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jar that cannot be fetched is named, with the reason."""

    def unreachable(self: object) -> Path:
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr("jgo.maven._core.Artifact.resolve", unreachable)
    with pytest.raises(Exception, match=r"kafka: other-1\.0\.jar could not be fetched \(name resolution failed\)"):
        Fetch(tmp_path, lambda _text: None).obtain((replace(_JAR, artifact="other"),))


def test_jars_are_kept_in_the_users_cache_or_beside_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty home gets a cache; where there is no usable home, the development folder has the jars."""
    root = tmp_path / ".silogate" / "dev"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert jar_folder(root) == tmp_path / "home" / ".cache" / "silogate" / "jars"
    (tmp_path / "file").touch()
    for unusable in ("", str(tmp_path / "file"), "/proc"):
        monkeypatch.setenv("HOME", unusable)
        assert jar_folder(root) == tmp_path / ".silogate" / "jars"
