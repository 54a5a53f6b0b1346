"""Keys that encrypt, and keys that stand in for what must not be read: one ring for the whole deployment."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY = 32
_NONCE = 12
_SAME_NONCE = bytes(_NONCE)
_LEAST = 1 + _NONCE + 16


class Unsealable(Exception):
    """Bytes that this ring did not seal for this purpose, or that were altered since."""


class KeyRing:
    """AES-256-GCM under the newest key, opening what older keys of the ring sealed; and HMACs under the newest.

    Every use has a key of its own, derived from the ring's. Nothing shows a key: not repr, not an error.
    """

    def __init__(self, keys: Mapping[int, bytes], current: int) -> None:
        if current not in keys:
            raise ValueError("the current key is not in the ring")
        for number, key in keys.items():
            if not 1 <= number <= 255 or len(key) != _KEY:
                raise ValueError("a key ring has 32-byte keys numbered 1 to 255")
        self._current = current
        self._secret = keys[current]
        self._ciphers = {number: AESGCM(_derive(key, "seal")) for number, key in keys.items()}
        self._mac_key = _derive(self._secret, "hmac")
        self._marker = AESGCM(_derive(self._secret, "mark"))
        self.hmac_key = _derive(self._secret, "tags")
        # Two rings that number different keys alike must not pass for the same one.
        print_of_key = hmac.digest(_derive(self._secret, "fingerprint"), b"", "sha256")[:6].hex()
        self.hmac_key_id = f"{current}:{print_of_key}"

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read `1:base64,2:base64`, the newest last; raises ValueError with a message that repeats no key."""
        keys: dict[int, bytes] = {}
        number = 0
        for place, part in enumerate(text.strip().split(","), start=1):
            label, colon, encoded = part.strip().partition(":")
            if not colon or not label.isascii() or not label.isdigit():
                raise ValueError(f"key {place} of the ring is not written as number:base64")
            number = int(label)
            if number in keys:
                raise ValueError(f"the ring has two keys numbered {number}")
            try:
                keys[number] = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise ValueError(f"key {number} of the ring is not base64") from None
            if len(keys[number]) != _KEY or not 1 <= number <= 255:
                raise ValueError(f"key {number} of the ring is not 32 bytes long, or not numbered 1 to 255")
        return cls(keys, number)

    def seal(self, plain: bytes, *, bound_to: bytes) -> bytes:
        """Encrypt and authenticate `plain`; it opens again only with the same `bound_to`."""
        nonce = os.urandom(_NONCE)
        return bytes((self._current,)) + nonce + self._ciphers[self._current].encrypt(nonce, plain, bound_to)

    def open(self, sealed: bytes, *, bound_to: bytes) -> bytes:
        """What was sealed; raises Unsealable for anything else, never gives wrong bytes."""
        cipher = self._ciphers.get(sealed[0]) if len(sealed) >= _LEAST else None
        if cipher is None:
            raise Unsealable("sealed by a key that is not in the ring, or cut short")
        try:
            return cipher.decrypt(sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], bound_to)
        except InvalidTag:
            raise Unsealable("altered, or sealed for another purpose") from None

    def hmac(self, *parts: bytes) -> bytes:
        """Sixteen bytes that stand for the parts, in this order, and that only this ring can make."""
        framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._mac_key, framed, "sha256")[:16]

    def mark(self, *parts: bytes) -> int:
        """64 bits that differ where the parts do, at a fraction of what `hmac` costs. Only for what is no secret.

        It is the tag of AES-GCM over the parts: a universal hash under a key, always with the same nonce, so that
        whoever sees many of them may learn to find others with the same mark.
        """
        return int.from_bytes(self._marker.encrypt(_SAME_NONCE, b"", b"\x00".join(parts))[:8], "big")

    def __repr__(self) -> str:
        return f"KeyRing(keys={sorted(self._ciphers)}, current={self._current})"


def _derive(key: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), _KEY, salt=None, info=f"silogate {purpose} 1".encode()).derive(key)
