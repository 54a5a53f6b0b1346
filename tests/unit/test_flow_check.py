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


AGAIN = """
  - purpose: {purpose}
    on: {on}
    when:
      submitter.email: {{present: true}}{when}
    sink: email
    template: confirmation
    to: submitter.email
    occurrence: {occurrence}
    then:
      done: {done}
      failed: {{end: true}}
      unknown: {{end: true}}
"""
END = "{end: true}"


def again(purpose: str, on: str, done: str, *, occurrence: str = "version", when: str = "") -> str:
    return AGAIN.format(purpose=purpose, on=on, done=done, occurrence=occurrence, when=when).lstrip("\n")


def test_an_effect_must_say_what_follows() -> None:
    """Leaving out what follows is not the same as saying that nothing does."""
    text = TEXT[: TEXT.index("    # What nobody knows of")]
    assert [line for line in problems(text) if "needs `then`" in line] == problems(text) != []


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        ("{plan: remainder}", "remainder is not known here; did you mean reminder?"),
        ("{set: {status: clsed}}", "clsed is not a value that the case type allows; did you mean closed?"),
        ("{set: {colour: red}}", "is not a field of the case type"),
        ("{set: {submitter.email: x@example.org}}", "never changes once the case is there"),
        ("{set: {notes: x}}", "is not a single value of the case"),
    ],
)
def test_what_follows_must_be_possible(branch: str, message: str) -> None:
    """A plan that does not exist and a value the case cannot hold are named at their line."""
    text = TEXT + again("reminder", "[case.noted]", branch)
    (found,) = problems(text)
    assert message in found
    assert found.startswith(f"flow.yaml:{line_of(branch, text)}: effects.1.then.done.")


def test_what_is_set_must_be_of_the_fields_kind() -> None:
    """A number for a text is named; a text is fine."""
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["team"] = {"type": "string"}
    text = TEXT + again("reminder", "[case.noted]", "{set: {team: 7}}")
    assert "7 is not a string" in problems(text, schema=schema)[0]
    assert problems(text.replace("team: 7", "team: north"), schema=schema) == []


def test_an_effect_that_nothing_plans_is_named() -> None:
    """An effect without events must be planned by another."""
    orphan = TEXT + again("apology", "[]", END)
    assert "effects.1.purpose: is planned by nothing" in problems(orphan)[0]
    assert problems(orphan + again("reminder", "[case.noted]", "{plan: apology}")) == []


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ([("closing", "[case.updated]", "{set: {status: closed}}")], "closing (done: set status) → closing"),
        ([("closing", "[case.noted]", "{note: It is closed.}")], "closing (done: note) → closing"),
        (
            [("first", "[case.updated]", "{plan: second}"), ("second", "[]", "{set: {status: open}}")],
            "first (done: plan) → second (done: set status) → first",
        ),
    ],
    ids=["set", "note", "two"],
)
def test_an_effect_that_plans_itself_again_is_named(rules: list[tuple[str, str, str]], path: str) -> None:
    """A circle of effects is an error that shows the way around; an effect that happens once in a life breaks it."""
    (found,) = problems(TEXT + "".join(again(*rule) for rule in rules))
    assert f"plans itself again and again: {path};" in found
    assert problems(TEXT + "".join(again(*rule, occurrence="once") for rule in rules)) == []


def test_a_change_that_rules_the_effect_out_is_no_circle() -> None:
    """What an effect sets may be the very thing that keeps its rule from holding again."""
    rule = again("closing", "[case.updated]", "{set: {status: closed}}", when="\n      status: {equals: open}")
    assert problems(TEXT + rule) == []


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
