"""A stored answer as bytes: a small header, then the result, sealed when it is personal."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cache.seal import KeyRing, Unsealable

_FORMAT = 1
_NEGATIVE = 1
_SEALED = 2
# format, flags, seq, commit time, end of soft TTL, end of TTL (milliseconds since 1970), ETag. fill.lua reads the seq.
_HEADER = struct.Struct(">BBQqqqQ")
_TAG = 29  # what sealing nothing takes: key number, nonce, authentication tag
_BODY = _HEADER.size + _TAG  # where that of an entry begins that is only authenticated


class Broken(Exception):
    """Bytes that are not an entry of this lookup under this key; `reason` is `parse` or `seal`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Entry:
    """An answer with the position that it was read at. Times are by the clock of the Redis that holds it.

    Nobody changes one. It is not frozen because one is made for every hit, and freezing it is most of that.
    """

    seq: int
    committed_ms: int
    soft_ms: int
    fresh_ms: int
    etag: int
    negative: bool
    body: bytes = field(repr=False)


class Codec:
    """Packs the entries of one lookup.

    An entry opens only under the lookup and the key that it was packed for, and with the header that it had. The body
    of a personal one is encrypted; any other is only authenticated, at a third of the cost.
    """

    def __init__(self, lookup: str, ring: KeyRing, *, personal: bool) -> None:
        self._lookup = lookup.encode() + b"\x00"
        self._ring = ring
        self._personal = personal

    def pack(self, entry: Entry, key: bytes) -> bytes:
        flags = entry.negative * _NEGATIVE | self._personal * _SEALED
        header = _HEADER.pack(_FORMAT, flags, entry.seq, entry.committed_ms, entry.soft_ms, entry.fresh_ms, entry.etag)
        if self._personal:
            return header + self._ring.seal(entry.body, bound_to=self._binding(key, header))
        binding = b"".join((self._lookup, key, b"\x00", header, entry.body))
        return b"".join((header, self._ring.seal(b"", bound_to=binding), entry.body))

    def unpack(self, raw: bytes, key: bytes) -> Entry:
        """The entry; raises Broken for anything else."""
        if len(raw) < _BODY:
            raise Broken("parse")
        number, flags, seq, committed_ms, soft_ms, fresh_ms, etag = _HEADER.unpack_from(raw)
        if number != _FORMAT or bool(flags & _SEALED) is not self._personal:
            raise Broken("parse")
        try:
            if self._personal:
                body = self._ring.open(raw[_HEADER.size :], bound_to=self._binding(key, raw[: _HEADER.size]))
            else:
                body = raw[_BODY:]
                binding = b"".join((self._lookup, key, b"\x00", raw[: _HEADER.size], body))
                self._ring.open(raw[_HEADER.size : _BODY], bound_to=binding)
        except Unsealable:
            raise Broken("seal") from None
        return Entry(seq, committed_ms, soft_ms, fresh_ms, etag, bool(flags & _NEGATIVE), body)

    def _binding(self, key: bytes, header: bytes) -> bytes:
        return self._lookup + key + b"\x00" + header
