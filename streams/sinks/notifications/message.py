"""An e-mail as bytes: composed so that nothing in it can become a header, and framed for SMTP's DATA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import getaddresses
from uuid import UUID

import orjson

# Stricter than RFC 5321: no quoted local parts, no address literals, no letters beyond ASCII. What it refuses is rare;
# what it lets through cannot end a command line or a header.
_ADDRESS = re.compile(
    r"(?P<local>[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)"
    r"@(?P<domain>([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)",
    re.ASCII,
)
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_DOT = re.compile(rb"^\.", re.MULTILINE)
_LONGEST_SUBJECT = 200
_LARGEST_MESSAGE = 1024 * 1024


class BadAddress(ValueError):
    """Not an address that mail is sent to. Does not repeat it."""


class MessageTooLarge(ValueError):
    """The rendered message is larger than any notice has reason to be."""


@dataclass(frozen=True, slots=True)
class Text:
    """What a template says: one subject line, and the same words as plain text and as HTML."""

    subject: str
    plain: str
    html: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message and the two addresses that SMTP is told: what the ledger stores and every attempt sends."""

    sender: str
    recipient: str
    message: bytes

    def __repr__(self) -> str:
        return f"Envelope({len(self.message)} bytes)"

    def to_bytes(self) -> bytes:
        """Return the form that is stored."""
        return orjson.dumps(
            {"sender": self.sender, "recipient": self.recipient, "message": self.message.decode("ascii")}
        )

    @classmethod
    def from_bytes(cls, stored: bytes) -> Envelope:
        """Read what `to_bytes` returned."""
        fields = orjson.loads(stored)
        return cls(fields["sender"], fields["recipient"], fields["message"].encode("ascii"))


def address(text: object) -> Address:
    """Return a mailbox that is safe in a header and on a command line; raises BadAddress."""
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) and len(text) <= 254 else None
    if match is None or len(match["local"]) > 64:
        raise BadAddress("is not an e-mail address that mail can be sent to")
    return Address(username=match["local"], domain=match["domain"])


def sender_address(text: str) -> Address:
    """Return the council's own mailbox, `name@domain` or `A name <name@domain>`; raises BadAddress."""
    found = getaddresses([text])
    if len(found) != 1 or _UNPRINTABLE.sub(" ", text) != text:
        raise BadAddress("is not one e-mail address")
    name, mailbox = found[0]
    plain = address(mailbox)
    return Address(display_name=name, username=plain.username, domain=plain.domain)


def compose(effect_id: UUID, sender: Address, recipient: Address, text: Text, at: datetime) -> Envelope:
    """Return the message of one effect: the same arguments always give the same bytes, all of them ASCII.

    Its Message-ID is made from the effect's id, so that a mailbox can see a second copy for what it is. Raises
    MessageTooLarge.
    """
    message = EmailMessage(policy=policy.SMTP.clone(cte_type="7bit", max_line_length=78))
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = one_line(text.subject)
    message["Date"] = at
    message["Message-ID"] = f"<{effect_id}@{sender.domain}>"
    # RFC 3834: an out-of-office reply to a machine helps nobody.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text.plain, cte="quoted-printable")
    message.add_alternative(text.html, subtype="html", cte="quoted-printable")
    message.set_boundary(f"=_{effect_id.hex}")
    content = message.as_bytes()
    if len(content) > _LARGEST_MESSAGE:
        raise MessageTooLarge("the message is larger than 1 MiB")
    return Envelope(sender.addr_spec, recipient.addr_spec, content)


def one_line(text: str) -> str:
    """Return a subject: whatever could start another header or hide in one becomes a space."""
    line = _UNPRINTABLE.sub(" ", text).strip()
    return line if len(line) <= _LONGEST_SUBJECT else line[: _LONGEST_SUBJECT - 1].rstrip() + "…"


def stuffed(message: bytes) -> bytes:
    """Return the message as DATA carries it, without the final dot.

    Every line ends in CRLF, none in a bare CR or LF (servers disagree about those, which is how one message is made
    to look like two), and a line that begins with a dot gets another (RFC 5321 §4.5.2).
    """
    lines = _LINE_END.sub(b"\r\n", message)
    if lines and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    return _DOT.sub(b"..", lines)
