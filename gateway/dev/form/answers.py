"""What a resident may answer, how a wrong answer is named, and the case that the answers make."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import orjson

from gateway.dev.form.journeys import Journey, Photo

CASE_TYPE = "public-toilet-problem"
DESCRIPTION_LIMIT = 1000
PHOTO_LIMIT = 8 * 1024**2
NOT_LISTED = "none"

# value, what the resident reads, hint
CATEGORIES = (
    ("litter", "Litter or rubbish", ""),
    ("dog-fouling", "Dog fouling", ""),
    ("blocked", "A blocked toilet, sink or drain", ""),
    ("broken-fitting", "Something is broken", "For example a door, lock, light or tap"),
    ("vandalism", "Vandalism or graffiti", ""),
    ("no-supplies", "No toilet paper, soap or water", ""),
    ("other", "Something else", ""),
)
CATEGORY_TITLES = {value: text for value, text, _ in CATEGORIES}
# status, what the resident reads, colour of the tag, sentence
STATUSES = {
    "open": ("Received", "blue", "We have your report and will pass it to the team that looks after this toilet."),
    "in_progress": ("In progress", "yellow", "The team is working on it."),
    "fixed": ("Fixed", "green", "The team says that the problem is fixed."),
    "no_further_action": ("No further action", "grey", "The team looked at it and will not do anything more."),
    "closed": ("Closed", "grey", "The report is closed."),
}

_POSTCODE = re.compile(r"^(GIR ?0AA|[A-Z]{1,2}\d[A-Z\d]? ?\d[ABD-HJLNP-UW-Z]{2})$", re.ASCII)
# What the case type takes, so that a wrong value is named on its own page and not after the last one.
_EMAIL = re.compile(r"^[^@\s<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\.[A-Za-z]{2,}$")
_TELEPHONE = re.compile(r"^\+?[0-9 ()-]{10,19}$")
_IMAGES = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))

Errors = dict[str, str]


def line(form: Mapping[str, Any], name: str) -> str:
    """One line of text: spaces joined, control characters gone. A file or a missing field reads as empty."""
    value = form.get(name)
    if not isinstance(value, str):
        return ""
    value = unicodedata.normalize("NFC", value.encode(errors="ignore").decode())
    return " ".join("".join(" " if _is_unseen(one) else one for one in value).split())


def _is_unseen(one: str) -> bool:
    # the byte order mark is white space to the case type, and not to `split`
    return one == "\N{ZERO WIDTH NO-BREAK SPACE}" or unicodedata.category(one) == "Cc"


def paragraphs(form: Mapping[str, Any], name: str) -> str:
    """Text of several lines, each cleaned like `line`; no more than one empty line in a row."""
    value = form.get(name)
    if not isinstance(value, str):
        return ""
    lines = [line({name: one}, name) for one in value.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def readable(text: str) -> str:
    """A name or an address that a gazetteer holds in capitals, as people write it; any other text as it is."""
    if not text.isupper():
        return text
    return " ".join(word if re.search(r"\d", word) else _capitalised(word) for word in text.split())


def _capitalised(word: str) -> str:
    return "-".join(part.lower() if part in ("BY", "ON", "IN") else part.capitalize() for part in word.split("-"))


def check_postcode(text: str) -> tuple[str, Errors]:
    """The postcode as it is written, with a space before the last three characters."""
    if not text:
        return "", {"postcode": "Enter a postcode"}
    squeezed = text.upper().replace(" ", "")
    if len(squeezed) > 7 or not _POSTCODE.match(squeezed):
        return text, {"postcode": "Enter a full UK postcode, like BN59 1AA"}
    return f"{squeezed[:-3]} {squeezed[-3:]}", {}


def check_description(text: str) -> Errors:
    if not text:
        return {"description": "Describe the problem"}
    if len(text) > DESCRIPTION_LIMIT:
        return {"description": f"Description must be {DESCRIPTION_LIMIT} characters or less"}
    return {}


def check_contact(form: Mapping[str, Any]) -> tuple[dict[str, str], Errors]:
    """Name, e-mail address and telephone number, and what is wrong with each."""
    values = {name: line(form, name) for name in ("name", "email", "telephone")}
    errors: Errors = {}
    if not values["name"]:
        errors["name"] = "Enter your full name"
    elif len(values["name"]) > 100:
        errors["name"] = "Full name must be 100 characters or less"
    if not values["email"]:
        errors["email"] = "Enter your email address"
    elif len(values["email"]) > 254 or not _EMAIL.match(values["email"]):
        errors["email"] = "Enter an email address in the correct format, like name@example.com"
    if values["telephone"] and not _TELEPHONE.match(values["telephone"]):
        errors["telephone"] = "Enter a telephone number, like 01632 960 001 or 07700 900 982"
    return values, errors


def check_photo(content: bytes, name: str) -> tuple[Photo | None, Errors]:
    """The photo with the type that its first bytes tell; what the browser claims it to be does not count."""
    if len(content) > PHOTO_LIMIT:
        return None, {"photo": "The photo must be smaller than 8MB"}
    kinds = [kind for start, kind in _IMAGES if content.startswith(start)]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kinds.append("image/webp")
    if not kinds:
        return None, {"photo": "The photo must be a JPG, PNG or WebP"}
    return Photo(content, kinds[0], line({"name": name}, "name")[:100]), {}


def case_document(journey: Journey) -> dict[str, Any]:
    """The body of `POST /v1/cases` that the answers make. The journey has its toilet and every answer."""
    answers, toilet = journey.answers, journey.toilet or {}
    street = toilet.get("street_address") or toilet["name"]
    return {
        "type": CASE_TYPE,
        "submitter": {name: answers[name] for name in ("name", "email", "telephone") if answers.get(name)},
        "location": {
            "easting": toilet["easting"],
            "northing": toilet["northing"],
            "uprn": str(toilet["uprn"]),
            "description": street[:200],
        },
        "asset": {"uprn": str(toilet["uprn"]), "name": line(toilet, "name")[:200]},
        "category": answers["category"],
        "notes": [{"text": answers["description"]}],
    }


def idempotency_key(journey: Journey, document: Mapping[str, Any]) -> str:
    """The same for the same answers of the same journey: a second press of the button sends nothing new."""
    return str(uuid5(UUID(journey.correlation_id), orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()))


def when(text: str) -> datetime:
    """A time as the gateway writes it."""
    return datetime.fromisoformat(text)
