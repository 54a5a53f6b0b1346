"""An e-mail as bytes: no header can be injected, and SMTP's framing cannot be broken."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.sinks.notifications.message import (
    BadAddress,
    Envelope,
    MessageTooLarge,
    Text,
    address,
    compose,
    one_line,
    sender_address,
    stuffed,
)

EFFECT = UUID("1bd28be9-aa1f-5ac6-8c8f-02bba1774c05")
AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
COUNCIL = sender_address("Adur & Worthing Councils <no-reply@council.example>")
RESIDENT = address("ada.whitfield@example.org")


def mail(subject: str = "Hello", plain: str = "Hello\n", html: str = "<p>Hello</p>\n") -> Envelope:
    return compose(EFFECT, COUNCIL, RESIDENT, Text(subject, plain, html), AT)


def read(envelope: Envelope) -> EmailMessage:
    message = message_from_bytes(envelope.message, policy=policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


def unstuffed(lines: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"", lines)


def test_the_same_effect_always_gives_the_same_bytes() -> None:
    """Message-ID, date and MIME boundary come from the effect and its event, so composing again changes nothing."""
    first, again = mail(), mail()
    assert first == again
    assert read(first)["Message-ID"] == f"<{EFFECT}@council.example>"
    assert read(first)["Date"].datetime == AT


def test_a_resident_can_read_it() -> None:
    """Plain text and HTML both arrive as written, accents and pound signs included."""
    message = read(mail("Café £5", "Café £5, déjà vu\n", "<p>Café £5</p>\n"))
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content() == "Café £5, déjà vu\r\n"
    assert html.get_content() == "<p>Café £5</p>\r\n"
    assert message["Subject"] == "Café £5"
    assert message["Auto-Submitted"] == "auto-generated"


def test_the_stored_form_reads_back() -> None:
    """What the ledger stores is exactly what it sends later."""
    envelope = mail("Café")
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope
    assert (envelope.sender, envelope.recipient) == ("no-reply@council.example", "ada.whitfield@example.org")
    assert "ada" not in repr(envelope)


@given(subject=st.text(), plain=st.text(st.characters(exclude_categories=["Cs"])))
@example(subject="Hello\r\nBcc: everyone@example.org", plain="x\r\n.\r\nMAIL FROM:<a@example.org>\r\n")
@example(subject="Hello\x0bBcc: a@b.c\u2028Cc: d@e.f\x85To: g@h.i", plain="\r.\r")
@example(subject="\ud800", plain="")
def test_no_text_becomes_a_header(subject: str, plain: str) -> None:
    """Whatever the texts hold, the message has the headers it was given, one of each, and is pure ASCII."""
    envelope = mail(subject, plain)
    headers = [name for name, _ in read(envelope).items()]
    assert headers == ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
    assert read(envelope)["To"] == "ada.whitfield@example.org"
    assert envelope.message.isascii()
    assert max(len(line) for line in envelope.message.split(b"\r\n")) <= 998


@given(message=st.binary() | st.text(alphabet="\r\n.a").map(str.encode))
@example(message=b".")
@example(message=b"a\n.\nb")
@example(message=b"a\r.\rb")
@example(message=b"a\r\n.\r\n")
def test_framing_cannot_be_broken(message: bytes) -> None:
    """No message ends the DATA early: the end mark appears nowhere, no bare CR or LF is left, and no byte is lost."""
    framed = stuffed(message)
    assert b"\r\n.\r\n" not in b"\r\n" + framed
    assert b"\r" not in framed.replace(b"\r\n", b"")
    assert b"\n" not in framed.replace(b"\r\n", b"")
    assert framed == b"" or framed.endswith(b"\r\n")
    lines = re.split(rb"\r\n|\r|\n", message)
    expected = lines[:-1] if lines[-1] == b"" else lines
    assert unstuffed(framed) == b"".join(line + b"\r\n" for line in expected)


@pytest.mark.parametrize(
    "text",
    [
        "ada@example.org\r\nBcc: x@example.org",
        "ada@example.org\n",
        "ada@example.org> SIZE=1",
        "<ada@example.org>",
        "ada smith@example.org",
        '"ada smith"@example.org',
        "ada@example.org,bob@example.org",
        "ada@[127.0.0.1]",
        "ada@exa_mple.org",
        "ada@-example.org",
        "ada@example..org",
        ".ada@example.org",
        "ada..b@example.org",
        "ada@example.org.",
        "ädä@example.org",
        "ada@exämple.org",
        "a" * 65 + "@example.org",
        "ada@" + "a." * 130 + "org",
        "@example.org",
        "ada",
        "",
        "\x00ada@example.org",
        None,
        42,
    ],
)
def test_what_is_no_plain_address_is_refused(text: object) -> None:
    """An address that could end a command line, name two mailboxes or hide a control character is refused, unquoted."""
    with pytest.raises(BadAddress) as caught:
        address(text)
    assert "ada" not in str(caught.value)


@pytest.mark.parametrize("text", ["o'hara+bins@mail.example.org", "a@localhost", "x_1@xn--caf-dma.example", "A.B@E.uk"])
def test_ordinary_addresses_are_taken(text: str) -> None:
    """Apostrophes, plus signs, underscores and punycode domains are ordinary."""
    assert address(text).addr_spec == text


@pytest.mark.parametrize("text", ["Council", "Council <>", "Council\r\nX: y <a@b.example>", "a@b.example, c@d.example"])
def test_a_wrong_sender_is_refused(text: str) -> None:
    """The council's own address is checked as strictly, when the worker starts."""
    with pytest.raises(BadAddress):
        sender_address(text)


@given(text=st.text())
def test_a_subject_is_one_short_line(text: str) -> None:
    """A subject is one printable line of at most 200 characters."""
    line = one_line(text)
    assert len(line) <= 200
    assert len(line.splitlines()) <= 1


def test_a_huge_message_is_refused() -> None:
    """Nothing above 1 MiB is stored or sent."""
    with pytest.raises(MessageTooLarge):
        mail(plain="x" * 1024 * 1024)
