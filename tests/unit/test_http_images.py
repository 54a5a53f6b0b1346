"""Attachments are what their bytes say, and lie in the store under their hash."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.blobs import Blobs, BlobsUnavailable, UnknownBlob
from gateway.dev.running import png as photo
from gateway.images import decode_header


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int = 2, height: int = 1) -> bytes:
    """A PNG: signature, header, pixels (not looked at) and end."""
    header = chunk(b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND")


def jpeg(width: int = 4000, height: int = 3000, marker: int = 0xC0) -> bytes:
    """A JPEG with a thumbnail in the EXIF segment before its frame, as cameras make them."""
    thumbnail = b"Exif\0\0II\xff\xd8\xff\xda\x00\x02\x11\xff\xd9"
    exif = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    frame = bytes((0xFF, marker)) + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8" + exif + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x2a\x15\xff\xd9"


def webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


LOSSY = webp(b"VP8 ", b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", 640, 480) + bytes(8))
LOSSLESS = webp(b"VP8L", b"\x2f" + struct.pack("<I", (640 - 1) | (480 - 1) << 14) + bytes(8))
EXTENDED = webp(b"VP8X", bytes(4) + (639).to_bytes(3, "little") + (479).to_bytes(3, "little"))


@pytest.mark.parametrize(
    ("content", "media_type", "size"),
    [
        (png(300, 200), "image/png", (300, 200)),
        (jpeg(), "image/jpeg", (4000, 3000)),
        (jpeg(800, 600, 0xC2), "image/jpeg", (800, 600)),
        (jpeg() + bytes(4000) + b"\xff", "image/jpeg", (4000, 3000)),
        (jpeg() + jpeg(400, 300), "image/jpeg", (4000, 3000)),
        (photo(), "image/png", (32, 24)),
        (LOSSY, "image/webp", (640, 480)),
        (LOSSLESS, "image/webp", (640, 480)),
        (EXTENDED, "image/webp", (640, 480)),
    ],
)
def test_a_header_tells_type_and_size(content: bytes, media_type: str, size: tuple[int, int]) -> None:
    """The three kinds of photograph are known by their own headers."""
    image = decode_header(content)
    assert image is not None
    assert (image.media_type, (image.width, image.height)) == (media_type, size)
    assert image.is_plausible


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a" + bytes(40),
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        png()[:29] + b"\0\0\0\0" + png()[33:],
        png()[:33],
        png()[:33] + chunk(b"IEND"),
        png()[:33] + chunk(b"IDAT") + chunk(b"IEND"),
        png()[:-12],
        png()[:-1],
        png()[:33] + b"\xff\xff\xff\xffIDAT" + png()[41:],
        png() + b"PK\x03\x04",
        png()[:33] + chunk(b"tEXt") * 30_000 + png()[33:],
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\x00\x01" + bytes(40),
        b"\xff\xd8\xff\xda\x00\x02" + bytes(40),
        b"\xff\xd8\xff\xc0\x00\x0b\x08\x0b\xb8\x0f\xa0" + bytes(9),
        jpeg()[:-2],
        jpeg()[:-4] + b"\xff\xd9",
        b"\xff\xd8" + b"\xff" * 100_000 + jpeg()[3:],
        LOSSY + b"<script>alert(1)</script>",
        webp(b"VP8 ", bytes(20)),
    ],
)
def test_what_only_looks_like_an_image_is_not_one(content: bytes) -> None:
    """A magic number without a whole picture behind it, or with something else behind a PNG or WebP, is refused."""
    assert decode_header(content) is None


@pytest.mark.parametrize("more", [b"SEFHk\x00\x00\x00SEFT", b"\x00\x00\x00\x18ftypmp42" + bytes(500), jpeg(), bytes(9)])
def test_a_photo_may_carry_what_its_phone_puts_behind_it(more: bytes) -> None:
    """Data of the maker, a short film or a second picture behind the end: it is the resident's photo all the same."""
    image = decode_header(jpeg() + more)
    assert image is not None
    assert (image.width, image.height) == (4000, 3000)


@pytest.mark.parametrize("content", [png(0, 5), png(50_000, 1), png(19_000, 19_000)])
def test_a_size_that_is_made_to_exhaust_is_not_plausible(content: bytes) -> None:
    """No photo has a side of nothing, or more pixels than any camera."""
    image = decode_header(content)
    assert image is not None
    assert not image.is_plausible


@given(st.binary(max_size=64), st.sampled_from([png(), jpeg(), LOSSY, LOSSLESS, EXTENDED]), st.integers(0, 90))
def test_no_bytes_break_the_decoder(noise: bytes, content: bytes, at: int) -> None:
    """A header cut off or overwritten anywhere is an image or none, never an error."""
    decode_header(noise)
    decode_header(content[:at])
    decode_header(content[:at] + noise + content[at + len(noise) :])


async def test_content_is_kept_under_its_hash_and_read_again(tmp_path: Path) -> None:
    """What comes back is what was stored, and nobody but the gateway's user reads it from the disk."""
    blobs = Blobs(tmp_path)
    blob = await blobs.store(png())
    assert blob.sha256 == hashlib.sha256(png()).hexdigest()
    assert await blobs.read(blob.sha256) == png()
    path = tmp_path / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list((tmp_path / "unfinished").iterdir())


async def test_the_same_content_at_once_is_one_file(tmp_path: Path) -> None:
    """Writers of equal content do not disturb each other."""
    blobs = Blobs(tmp_path)
    stored = await asyncio.gather(*(blobs.store(jpeg()) for _ in range(20)))
    assert len(set(stored)) == 1
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == 1


async def test_a_file_cut_off_by_a_crash_is_written_again(tmp_path: Path) -> None:
    """A name is no proof: content of another length is replaced."""
    blobs = Blobs(tmp_path)
    blob = await blobs.store(png())
    path = tmp_path / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256
    path.write_bytes(b"half")
    await blobs.store(png())
    assert await blobs.read(blob.sha256) == png()


async def test_altered_content_is_never_given_out(tmp_path: Path) -> None:
    """What no longer has its hash is an outage, not an answer."""
    blobs = Blobs(tmp_path)
    blob = await blobs.store(png())
    path = tmp_path / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256
    path.write_bytes(jpeg())
    with pytest.raises(BlobsUnavailable):
        await blobs.read(blob.sha256)


@pytest.mark.parametrize("name", ["../../etc/passwd", "0" * 63, "0" * 64, "A" * 64, ""])
async def test_only_a_known_hash_is_read(tmp_path: Path, name: str) -> None:
    """A name that is no hash, or of nothing stored, reaches no file."""
    with pytest.raises(UnknownBlob):
        await Blobs(tmp_path).read(name)


async def test_a_folder_that_cannot_be_written_is_said_as_such(tmp_path: Path) -> None:
    """A full or missing disk is one named error."""
    (tmp_path / "blobs").write_text("a file where a folder should be")
    with pytest.raises(BlobsUnavailable):
        await Blobs(tmp_path / "blobs").store(png())


async def test_what_a_killed_writer_left_is_swept_but_nothing_younger(tmp_path: Path) -> None:
    """Unfinished files go after an hour; one being written stays."""
    blobs = Blobs(tmp_path)
    await blobs.store(png())
    old, young = tmp_path / "unfinished" / "old", tmp_path / "unfinished" / "young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert await blobs.sweep() == 1
    assert young.exists()
