"""What `check` finds wrong with a flow beside its case type, recipients, sinks and templates."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from streams.flow import Flow
from streams.flows.check import check_flow

FOLDER = Path("deploy/integrations/report-a-problem")
SCHEMA: dict[str, Any] = orjson.loads((FOLDER / "case.schema.json").read_bytes())
TEXT = (FOLDER / "flow.yaml").read_text()


def problems(text: str = TEXT, *, schema: dict[str, Any] = SCHEMA, **given: Any) -> list[str]:
    facts: dict[str, Any] = {
        "case_type": "public-toilet-problem",
        "recipients": ["street-team", "contractor"],
        "sinks": ["email"],
        "templates": FOLDER / "templates",
        **given,
    }
    return [str(problem) for problem in check_flow(Flow.parse(text, Path("flow.yaml")), case_schema=schema, **facts)]


def line_of(words: str, text: str = TEXT) -> int:
    return text[: text.index(words)].count("\n") + 1


def test_the_shipped_flow_has_no_problem() -> None:
    """The flow and templates of report-a-problem pass their own check."""
    assert problems() == []


def test_an_unknown_recipient_is_named() -> None:
    """A delivery to a recipient that the integration does not declare is an error at its line, with the likely name."""
    text = TEXT.replace("to: contractor", "to: contracter")
    message = "contracter is not known here; did you mean contractor?"
    assert problems(text) == [f"flow.yaml:{line_of('to: contracter', text)}: deliver.1.to: {message}"]


def test_an_unknown_sink_is_named() -> None:
    """An effect for a sink that is not there is an error, and says which there are."""
    assert problems(sinks=["letter"]) == [
        f"flow.yaml:{line_of('sink: email')}: effects.0.sink: email is not known here; known are letter"
    ]


def test_a_value_the_case_type_does_not_allow_is_named() -> None:
    """A category in `when` that no case can have is an error: the rule would silently never hold."""
    text = TEXT.replace("[dog-fouling, litter]", "[dog-fouling, litters]", 1)
    message = "litters is not a value that the case type allows; did you mean litter?"
    assert problems(text) == [f"flow.yaml:{line_of('litters', text)}: deliver.0.when.category: {message}"]


def test_a_field_the_case_type_does_not_have_is_named() -> None:
    """A condition on an unknown field is an error."""
    text = TEXT.replace("submitter.email: {", "submitter.mail: {")
    assert any("effects.0.when.submitter.mail: is not a field of the case type" in line for line in problems(text))


def test_a_category_that_goes_nowhere_is_named() -> None:
    """Each allowed category needs a recipient for a new case; one that has none is named."""
    text = TEXT.replace("category: {not_in: [dog-fouling, litter]}", "category: {in: [blocked, broken-fitting, other]}")
    assert problems(text) == [
        f"flow.yaml:{line_of('deliver:')}: deliver: a new case with category {category} goes to no recipient"
        for category in ("vandalism", "no-supplies")
    ]


def test_a_case_without_a_category_must_go_somewhere_too() -> None:
    """Where the schema lets a case lack the field that decides, its absence is one more branch."""
    schema = copy.deepcopy(SCHEMA)
    schema["required"].remove("category")
    assert problems(schema=schema) == []
    only = TEXT.replace("not_in: [dog-fouling, litter]", "in: [blocked, broken-fitting, vandalism, no-supplies, other]")
    assert problems(only) == []
    assert any("category none goes to no recipient" in line for line in problems(only, schema=schema))


def test_an_address_that_may_be_missing_must_be_asked_for() -> None:
    """An effect to a field that a case may lack needs the condition that it is present."""
    text = TEXT.replace("submitter.email: {present: true}", "category: {equals: litter}")
    found = [line for line in problems(text) if "effects.0.to" in line]
    message = "a case may lack submitter.email; add `submitter.email: {present: true}` to `when`"
    assert found == [f"flow.yaml:{line_of('to: submitter.email', text)}: effects.0.to: {message}"]


def test_a_missing_template_is_named_at_the_flow() -> None:
    """An effect whose template does not exist is an error at the line that names it."""
    text = TEXT.replace("template: confirmation", "template: confirmed")
    message = f"there is no template confirmed in {FOLDER / 'templates'}"
    assert problems(text) == [f"flow.yaml:{line_of('template: confirmed', text)}: effects.0.template: {message}"]


def test_the_wrong_case_type_is_named() -> None:
    """A flow for another case type than the integration's would never do anything."""
    assert problems(case_type="public-toilet-fault")[0].startswith("flow.yaml:3: case_type: ")


@pytest.mark.parametrize(
    ("part", "old", "new", "message"),
    [
        ("subject.txt", "case.reference", "case.refrence", "refrence: is not a field of the case; did you mean ref"),
        (
            "body.txt",
            'category == "litter"',
            'catgory == "litter"',
            "catgory: is not a field of the case; did you mean",
        ),
        ("body.html", "case.reference", "submitter.nickname", "nickname: is not a field of the case"),
        ("body.txt", "{{ case.reference }}", "{{ submitter.telephone }}", "writes a field that a case need not have"),
        ("body.txt", "{% endif %}", "", "Unexpected end of template"),
        ("body.txt", "{{ case.at.day }}", "{{ case.at.hours() }}", "asks for what is not there"),
    ],
)
def test_a_templates_mistakes_are_named_by_file_and_line(
    tmp_path: Path, part: str, old: str, new: str, message: str
) -> None:
    """An unknown field, a field that may be empty and a syntax error in a template are found before it is sent."""
    folder = tmp_path / "templates"
    shutil.copytree(FOLDER / "templates", folder)
    path = folder / f"confirmation.{part}"
    before = path.read_text()
    path.write_text(before.replace(old, new, 1))

    (found,) = problems(templates=folder)

    assert message in found
    assert found.startswith(f"{path}:")
    if "end of template" not in message:
        assert found.startswith(f"{path}:{line_of(old, before)}:"), found


def test_a_value_that_a_template_forgot_is_found(tmp_path: Path) -> None:
    """A template is tried with every allowed value of every field, so a forgotten one is found at check."""
    folder = tmp_path / "templates"
    shutil.copytree(FOLDER / "templates", folder)
    (folder / "confirmation.subject.txt").write_text('{{ {"litter": "Litter", "dog-fouling": "Dogs"}[category] }}\n')
    assert any("confirmation.subject.txt:1: asks for what is not there" in line for line in problems(templates=folder))
