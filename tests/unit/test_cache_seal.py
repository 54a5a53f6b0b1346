"""What is sealed opens only as what it was sealed for, and the ring never shows a key."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.entry import Broken, Codec, Entry
from cache.seal import KeyRing, Unsealable

RING = KeyRing({1: b"a" * 32, 2: b"b" * 32}, 2)
KEY = b"silogate:{town}:lk:epoch:digest"


@given(st.binary(max_size=4000), st.binary(max_size=100))
def test_what_was_sealed_opens(plain: bytes, bound_to: bytes) -> None:
    """Any bytes come back, and no two sealings are alike."""
    sealed = RING.seal(plain, bound_to=bound_to)
    assert RING.open(sealed, bound_to=bound_to) == plain
    assert RING.seal(plain, bound_to=bound_to) != sealed


@given(st.integers(0, 40), st.integers(1, 255))
def test_an_altered_byte_is_noticed(place: int, change: int) -> None:
    """Wherever it is: key number, nonce, contents or tag."""
    sealed = bytearray(RING.seal(b"Ottoline", bound_to=b"case"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(Unsealable):
        RING.open(bytes(sealed), bound_to=b"case")


@pytest.mark.parametrize("sealed", [b"", b"\x02", b"\x02" * 28, b"\x07" * 60])
def test_what_was_never_sealed_does_not_open(sealed: bytes) -> None:
    """Neither short bytes nor a key that the ring does not have."""
    with pytest.raises(Unsealable):
        RING.open(sealed, bound_to=b"")


def test_what_is_bound_to_one_thing_does_not_open_for_another() -> None:
    """Sealed bytes cannot be moved from one case or key to another."""
    with pytest.raises(Unsealable):
        RING.open(RING.seal(b"x", bound_to=b"one"), bound_to=b"other")


def test_older_keys_open_and_the_newest_seals() -> None:
    """After a rotation what was sealed before still opens, and HMACs are those of the new key."""
    before = KeyRing({1: b"a" * 32}, 1)
    sealed = before.seal(b"x", bound_to=b"case")
    assert RING.open(sealed, bound_to=b"case") == b"x"
    with pytest.raises(Unsealable):
        before.open(RING.seal(b"x", bound_to=b"case"), bound_to=b"case")
    assert before.hmac(b"x") != RING.hmac(b"x")
    assert before.hmac_key_id != RING.hmac_key_id
    assert before.hmac_key != RING.hmac_key


def test_a_ring_is_read_from_text_the_newest_key_last() -> None:
    """`number:base64`, separated by commas, as a secret file holds it."""
    text = ",".join(f"{n}:{base64.b64encode(key * 32).decode()}" for n, key in ((1, b"a"), (2, b"b")))
    ring = KeyRing.parse(f" {text}\n")
    assert ring.hmac_key_id == RING.hmac_key_id
    assert RING.open(ring.seal(b"x", bound_to=b""), bound_to=b"") == b"x"


SECRET = base64.b64encode(b"secretsecretsecret").decode()


@pytest.mark.parametrize(
    "text", ["", "1", f"x:{SECRET}", f"1:{SECRET}", f"1:{SECRET}!", f"300:{SECRET}", f"1:{SECRET},1:{SECRET}"]
)
def test_a_wrong_ring_is_refused_without_showing_it(text: str) -> None:
    """The message says which key is wrong and how, never what it is."""
    with pytest.raises(ValueError, match="key") as caught:
        KeyRing.parse(text)
    assert SECRET not in str(caught.value)


def test_nothing_shows_a_key() -> None:
    """Neither repr nor str has a byte of one."""
    assert repr(RING) == str(RING) == "KeyRing(keys=[1, 2], current=2)"


def test_hmacs_tell_the_same_parts_apart_by_their_borders() -> None:
    """No value can imitate two."""
    assert RING.hmac(b"ab", b"c") != RING.hmac(b"a", b"bc")
    assert len(RING.hmac(b"ab")) == 16


@pytest.mark.parametrize("personal", [True, False])
@given(
    entry=st.builds(
        Entry,
        seq=st.integers(0, 2**53),
        committed_ms=st.integers(0, 2**45),
        soft_ms=st.integers(0, 2**45),
        fresh_ms=st.integers(0, 2**45),
        etag=st.integers(0, 2**64 - 1),
        negative=st.booleans(),
        body=st.binary(max_size=3000),
    )
)
def test_an_entry_comes_back_as_it_was(personal: bool, entry: Entry) -> None:
    """Under its own lookup and key, and under no other; a personal one does not show its body."""
    codec = Codec("claim", RING, personal=personal)
    raw = codec.pack(entry, KEY)
    assert codec.unpack(raw, KEY) == entry
    if len(entry.body) > 8:
        assert (entry.body in raw) is not personal
    for other, key in ((codec, KEY + b"x"), (Codec("other", RING, personal=personal), KEY)):
        with pytest.raises(Broken) as caught:
            other.unpack(raw, key)
        assert caught.value.reason == "seal"
    with pytest.raises(Broken) as caught:
        Codec("claim", RING, personal=not personal).unpack(raw, KEY)
    assert caught.value.reason == "parse"


@pytest.mark.parametrize("personal", [True, False])
@given(raw=st.binary(max_size=200))
def test_bytes_that_are_no_entry_are_broken(personal: bool, raw: bytes) -> None:
    """Whatever lies under the key, it is refused and nothing else is raised."""
    with pytest.raises(Broken):
        Codec("claim", RING, personal=personal).unpack(raw, KEY)


@pytest.mark.parametrize("personal", [True, False])
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_an_entry_with_one_altered_byte_is_broken(personal: bool, place: int, change: int) -> None:
    """In the header, which says how new it is, as in the body."""
    codec = Codec("claim", RING, personal=personal)
    raw = bytearray(codec.pack(Entry(7, 1, 2, 3, 4, negative=False, body=b'[{"name":"Ada"}]'), KEY))
    raw[place % len(raw)] ^= change
    with pytest.raises(Broken):
        codec.unpack(bytes(raw), KEY)
