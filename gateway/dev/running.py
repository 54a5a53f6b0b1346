"""The demo as its visitors know it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from gateway.dev.desks import Screens


@dataclass(frozen=True, slots=True)
class Running:
    """Addresses, keys, the recipients' screens and the mailbox."""

    form: str
    gateway: str
    admin: str
    worker: str
    website_key: str = field(repr=False)
    benefits_key: str = field(repr=False)
    operator_key: str = field(repr=False)
    screens: Screens
    maildir: Path


def png(width: int = 32, height: int = 24) -> bytes:
    """A small photo, made here: a green field."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\x00" + b"\x2e\x7d\x46" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
