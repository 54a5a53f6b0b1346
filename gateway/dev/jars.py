"""The jars that Kafka consists of: fetched by jgo, each compared with the SHA-256 in the committed lock file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.dev.process import ServerFailed

LOCK = Path(__file__).with_name("kafka.jgo.lock.toml")
_PARALLEL_DOWNLOADS = 6
_SILENCE_S = 20


class WrongJar(ServerFailed):
    """A jar is not the one the lock file names. It is not used."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def read_lock(lock: Path = LOCK) -> tuple[Jar, ...]:
    """The jars of the lock file, in the order of the class path."""
    entries = tomllib.loads(lock.read_text(encoding="utf-8"))["dependencies"]
    return tuple(Jar(entry["groupId"], entry["artifactId"], entry["version"], entry["sha256"]) for entry in entries)


def jar_folder(root: Path) -> Path:
    """Where jars are kept: the user's cache, or the development folder where the home cannot be written."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or "", ".cache")
    folder = Path(cache, "silogate", "jars")
    try:
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except OSError:
        pass  # an unwritable home is what the other folder is for
    folder = root.parent / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Fetch:
    """Jars in one folder; `on_progress(text)` is called from another thread, and only when something is fetched."""

    def __init__(self, folder: Path, on_progress: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_progress = on_progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._fetched_bytes = 0

    def stop(self) -> None:
        """Give up what is still being fetched."""
        self._stopped.set()

    def obtain(self, jars: tuple[Jar, ...]) -> tuple[Path, ...]:
        """Paths of all jars, each verified just now; those not there yet are fetched first."""
        missing = [jar for jar in jars if not (self._folder / jar.filename).exists()]
        if missing:
            self._fetch_all(missing, len(jars))
        for jar in jars:
            verify(jar, self._folder / jar.filename)
        return tuple(self._folder / jar.filename for jar in jars)

    def _fetch_all(self, missing: list[Jar], wanted: int) -> None:
        there = wanted - len(missing)
        with _scratch(self._folder) as scratch, ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            futures = [pool.submit(self._fetch, jar, scratch) for jar in missing]
            try:
                for count, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    megabytes = self._fetched_bytes / 1e6
                    self._on_progress(f"fetching Kafka, {there + count} of {wanted} jars, {megabytes:.1f} MB")
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _fetch(self, jar: Jar, scratch: Path) -> None:
        from jgo.maven import MavenContext, PythonResolver

        context = MavenContext(
            repo_cache=scratch, resolver=PythonResolver(progress_callback=self._count), timeout=_SILENCE_S
        )
        try:
            component = context.project(jar.group, jar.artifact).at_version(jar.version)
            path = Path(component.artifact().resolve())
        except (OSError, RuntimeError) as error:  # what requests raises are OSErrors
            raise ServerFailed(
                "kafka", f"{jar.filename} could not be fetched ({error}). Is there a way to the network?"
            ) from error
        verify(jar, path)
        # Only a whole and verified jar ever gets the name under which it is looked for.
        path.replace(self._folder / jar.filename)

    @contextmanager
    def _count(self, filename: str, _size: int) -> Iterator[Callable[[int], None]]:
        def add(count: int) -> None:
            if self._stopped.is_set():
                raise ServerFailed("kafka", f"fetching {filename} was given up")
            with self._lock:
                self._fetched_bytes += count

        yield add


def verify(jar: Jar, path: Path) -> None:
    """Raise WrongJar unless the file is the jar that the lock file names."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != jar.sha256:
        raise WrongJar(
            "kafka",
            f"{path} is not the {jar.filename} of the lock file: its SHA-256 is {found}, wanted {jar.sha256}."
            " Kafka was not started. Delete the file to have it fetched again.",
        )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    for abandoned in folder.glob(".fetch-*"):
        if abandoned.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(abandoned, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
