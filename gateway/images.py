"""What an image's own bytes say it is: the media type a caller declares is a claim, not a fact."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
# Larger ones are not photographs of anything: they are made to exhaust whoever decodes them.
_MAX_SIDE = 20_000
_MAX_PIXELS = 120_000_000
# Start-of-frame markers: all of C0..CF but DHT, JPG and DAC.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
# Chunks or segments of one picture. Millions of empty ones would only keep the event loop busy.
_MAX_PARTS = 20_000
# Some cameras fill their files up to whole blocks.


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded header."""

    media_type: str
    width: int
    height: int

    @property
    def is_plausible(self) -> bool:
        """A picture that a person may have taken, by its size."""
        sides = 0 < self.width <= _MAX_SIDE and 0 < self.height <= _MAX_SIDE
        return sides and self.width * self.height <= _MAX_PIXELS


def decode_header(content: bytes | bytearray) -> Image | None:
    """The image that the bytes are, or None when they are no JPEG, PNG or WebP that begins and ends as it should."""
    for media_type, size_of in _FORMATS:
        size = size_of(content)
        if size is not None:
            return Image(media_type, *size)
    return None


def _png(content: bytes | bytearray) -> tuple[int, int] | None:
    if content[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" or len(content) < 33:
        return None
    if zlib.crc32(content[12:29]) != int.from_bytes(content[29:33], "big"):
        return None
    if not _png_ends(content, 33):
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _png_ends(content: bytes | bytearray, at: int) -> bool:
    """Whether the chunks from `at` on hold pixels, and the last of them is the end of the picture and of the bytes."""
    pixels = False
    for _ in range(_MAX_PARTS):
        length, kind = int.from_bytes(content[at : at + 4], "big"), bytes(content[at + 4 : at + 8])
        at += 12 + length
        if at > len(content) or not kind.isalpha():
            return False
        if kind == b"IEND":
            return pixels and length == 0 and at == len(content)
        pixels = pixels or (kind == b"IDAT" and length > 0)
    return False


def _jpeg(content: bytes | bytearray) -> tuple[int, int] | None:
    if content[:3] != b"\xff\xd8\xff":
        return None
    at, size = 2, None
    for _ in range(_MAX_PARTS):
        if at + 4 > len(content) or content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF or marker in _JPEG_ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        body, length = at + 4, int.from_bytes(content[at + 2 : at + 4], "big")
        at += 2 + length
        if length < 2 or marker == 0xD9 or at > len(content):
            return None
        if marker == 0xDA:
            return size if _jpeg_ends(content, at) else None
        if marker in _JPEG_FRAMES:
            if length < 8:
                return None
            frame = content[body + 1 : body + 5]
            size = int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")
    return None


def _jpeg_ends(content: bytes | bytearray, scan: int) -> bool:
    """Whether pixels begin at `scan` and the picture has an end.

    What stands behind the end is let be: phones put depth maps, short films and data of their makers there, and every
    reader stops at the end. Within the pixels an end marker cannot occur (ISO/IEC 10918-1, B.1.1.5).
    """
    return content.find(b"\xff\xd9", scan) > scan


def _webp(content: bytes | bytearray) -> tuple[int, int] | None:
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    # the container says how long it is; a longer file carries something else behind the picture
    if int.from_bytes(content[4:8], "little") + 8 not in (len(content), len(content) - 1):
        return None
    kind, body = bytes(content[12:16]), content[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


_FORMATS: tuple[tuple[str, Callable[[bytes | bytearray], tuple[int, int] | None]], ...] = (
    ("image/jpeg", _jpeg),
    ("image/png", _png),
    ("image/webp", _webp),
)
