"""Mail templates: what they say, what they refuse, and what they can never do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from streams.declared import InvalidDeclaration
from streams.sinks.notifications.templates import MailTemplate, Unrenderable

FOLDER = Path("deploy/integrations/report-a-problem")
SCHEMA: dict[str, Any] = orjson.loads((FOLDER / "case.schema.json").read_bytes())
CONFIRMATION = MailTemplate.load(FOLDER / "templates", "confirmation", SCHEMA)


def payload(category: str = "litter", at: str = "2026-11-22T09:30:00+00:00", **submitter: Any) -> dict[str, Any]:
    return {
        "case": {"id": "x", "reference": "RAP-7KQ2-93XD", "type": "public-toilet-problem", "version": 1, "at": at},
        "public": {"category": category, "status": "open", "asset": {"uprn": "60001449", "name": "Beach Green"}},
        "personal": {"submitter": {"name": "Ada Whitfield", **submitter}},
    }


def template(folder: Path, *, subject: str = "Hello\n", plain: str = "Hello\n", html: str = "<p>Hello</p>\n") -> Path:
    for part, text in (("subject.txt", subject), ("body.txt", plain), ("body.html", html)):
        (folder / f"note.{part}").write_text(text, encoding="utf-8")
    return folder


def test_the_confirmation_tells_the_reference_and_what_happens_next() -> None:
    """The resident reads the reference, what was reported, who deals with it and when it was sent."""
    text = CONFIRMATION.render(payload("dog-fouling"))
    assert text.subject.strip() == "We have received your report: RAP-7KQ2-93XD"
    for words in (text.plain, text.html):
        for expected in ("RAP-7KQ2-93XD", "Dog fouling", "What happens next", "street team", "22 November 2026"):
            assert expected in words
    assert "\n\n\n" not in text.plain


@pytest.mark.parametrize("category", SCHEMA["properties"]["category"]["enum"])
def test_every_category_reads_as_words(category: str) -> None:
    """No resident reads a code of ours, and only cleaning goes to the street team."""
    text = CONFIRMATION.render(payload(category))
    for words in (text.plain, text.html):
        assert "no-supplies" not in words
        assert ("street team" in words) is (category in {"litter", "dog-fouling"})
        assert ("contractor" in words) is (category not in {"litter", "dog-fouling"})


def test_the_confirmation_repeats_nothing_that_a_stranger_wrote() -> None:
    """Whoever enters somebody else's address cannot send them words or links of their own through the council."""
    text = CONFIRMATION.render(payload(name="Visit http://spam.example now"))
    assert "spam" not in text.subject + text.plain + text.html


def test_the_confirmation_loads_nothing_and_tracks_nobody() -> None:
    """The HTML has no image, link, script, style sheet or remote address."""
    html = CONFIRMATION.render(payload()).html.lower()
    assert not [word for word in ("http", "<img", "<a ", "<script", "<link", "url(", "src=") if word in html]


def test_the_day_is_the_residents_day() -> None:
    """A report sent half an hour after midnight in summer carries that day, although it is yesterday in UTC."""
    assert "2 July 2026" in CONFIRMATION.render(payload(at="2026-07-01T23:30:00+00:00")).plain


def test_html_escapes_and_plain_text_does_not(tmp_path: Path) -> None:
    """A value with markup in it is shown as written, in both bodies."""
    folder = template(tmp_path, plain="{{ submitter.name }}\n", html="<p>{{ submitter.name }}</p>\n")
    text = MailTemplate.load(folder, "note", SCHEMA).render(payload(name="<b>O'Hara & Co</b>"))
    assert text.plain == "<b>O'Hara & Co</b>\n"
    assert text.html == "<p>&lt;b&gt;O&#39;Hara &amp; Co&lt;/b&gt;</p>\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("{{ submitter.telephone }}", "empty_field"),
        ("{{ submitter.nickname }}", "unknown_field"),
        ("{{ nobody }}", "unknown_field"),
        ("{{ submitter.name + 1 }}", "TypeError"),
        ("{{ submitter.name.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{% include 'other.txt' %}", "TypeError"),
    ],
)
def test_what_cannot_be_written_is_refused_without_quoting_it(tmp_path: Path, words: str, reason: str) -> None:
    """An absent field, an unknown name and an attempt to leave the sandbox fail with a code, never with a value."""
    broken = MailTemplate.load(template(tmp_path, plain=words), "note", SCHEMA)
    with pytest.raises(Unrenderable) as caught:
        broken.render(payload())
    assert caught.value.reason == reason
    assert "Ada" not in str(caught.value)


def test_an_absent_field_can_be_asked_for(tmp_path: Path) -> None:
    """`if` on a field that this case lacks is simply false, also inside an object that is not there."""
    words = "{% if submitter.telephone or location.description %}yes{% else %}no{% endif %}"
    assert MailTemplate.load(template(tmp_path, plain=words), "note", SCHEMA).render(payload()).plain == "no"


def test_missing_and_broken_files_are_all_named(tmp_path: Path) -> None:
    """Loading reports every file that is missing or does not parse, with its line."""
    folder = template(tmp_path, plain="one\n{% if %}\n")
    (folder / "note.body.html").unlink()
    with pytest.raises(InvalidDeclaration) as caught:
        MailTemplate.load(folder, "note", SCHEMA)
    found = [str(problem) for problem in caught.value.problems]
    assert found[0].startswith(f"{folder / 'note.body.txt'}:2: ")
    assert found[1].startswith(f"{folder / 'note.body.html'}:1: cannot be read")
