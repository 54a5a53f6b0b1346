"""Attachments by content hash in a shared folder: written once, never changed, never half there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ABANDONED_S = 3600.0


class BlobsUnavailable(Exception):
    """The folder cannot be read or written now."""


class UnknownBlob(Exception):
    """No content has this hash."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored content: its hash is its name."""

    sha256: str
    bytes: int


class Blobs:
    """Content under `folder`/ab/cd/<sha256>. Several processes may share the folder; equal content is stored once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def store(self, content: bytes | bytearray) -> Blob:
        """Returns once the content would survive a power cut; raises BlobsUnavailable."""
        return await asyncio.to_thread(self._store, content)

    async def read(self, sha256: str) -> bytes:
        """The content again; raises UnknownBlob, or BlobsUnavailable when it is not what was stored."""
        return await asyncio.to_thread(self._read, sha256)

    async def sweep(self) -> int:
        """Removes what writers left behind when they were killed; returns how many files."""
        return await asyncio.to_thread(self._sweep)

    def _store(self, content: bytes | bytearray) -> Blob:
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        path = self._path(blob.sha256)
        try:
            if not (path.is_file() and path.stat().st_size == blob.bytes):
                unfinished = self._folder / "unfinished"
                for folder in (unfinished, path.parent):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(unfinished, path, content)
            # also when another process has just renamed it: only this makes the name itself last
            for folder in (path.parent, path.parent.parent, self._folder):
                _sync_folder(folder)
        except OSError as error:
            raise BlobsUnavailable(error.strerror) from error
        return blob

    def _read(self, sha256: str) -> bytes:
        try:
            content = self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise UnknownBlob from None
        except OSError as error:
            raise BlobsUnavailable(error.strerror) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BlobsUnavailable("the stored content was altered")
        return content

    def _sweep(self) -> int:
        swept = 0
        oldest = time.time() - _ABANDONED_S
        for path in (self._folder / "unfinished").glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    swept += 1
        return swept

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise UnknownBlob
        return self._folder / sha256[:2] / sha256[2:4] / sha256


def _write(unfinished: Path, path: Path, content: bytes | bytearray) -> None:
    """The name appears only after the content is on the disk."""
    handle, name = tempfile.mkstemp(dir=unfinished)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
