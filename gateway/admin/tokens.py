"""Addresses that tell nothing: what a link leads to is sealed in it, so it can be neither read nor guessed."""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Tokens:
    """Seals short texts for use in a path; a token of one purpose never opens for another."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)

    def seal(self, purpose: str, text: str) -> str:
        nonce = os.urandom(12)
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), purpose.encode())).decode()

    def open(self, purpose: str, token: str) -> str | None:
        """What was sealed; None for anything that this secret did not seal for this purpose."""
        try:
            raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
            return self._cipher.decrypt(raw[:12], raw[12:], purpose.encode()).decode()
        except (binascii.Error, InvalidTag, ValueError):
            return None
