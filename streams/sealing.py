"""What streams asks of encryption: the keys and the cipher belong to whoever wires the application."""

from typing import Protocol


class Sealer(Protocol):
    """Seals bytes so that they open only with the same key and the same `bound_to`."""

    def seal(self, plain: bytes, *, bound_to: bytes) -> bytes:
        """Encrypts and authenticates `plain`; two calls never give the same bytes."""
        ...

    def open(self, sealed: bytes, *, bound_to: bytes) -> bytes:
        """Gives back what was sealed, or raises: never wrong bytes."""
        ...
