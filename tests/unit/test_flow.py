"""What a flow decides about an event: who receives it and which effects it plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.declared import InvalidDeclaration
from streams.flow import Condition, Flow
from streams.testing import case_event

FOLDER = Path("deploy/integrations/report-a-problem")
CATEGORIES = ["litter", "dog-fouling", "blocked", "broken-fitting", "vandalism", "no-supplies", "other"]
RESIDENT = {"submitter": {"name": "Ada Whitfield", "email": "ada@example.org"}}
HEAD = "flow: report-a-problem\ncase_type: public-toilet-problem\n"
EFFECT = """effects:
  - purpose: confirmation
    on: [case.created]
    sink: email
    template: confirmation
    to: submitter.email
    occurrence: {occurrence}
"""


def flow(text: str) -> Flow:
    return Flow.parse(text, Path("flow.yaml"))


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidDeclaration) as caught:
        flow(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_street_team_cleans_and_the_contractor_does_the_rest(category: str) -> None:
    """Dog fouling and litter go to the council's own team, everything else to the contractor; never to both."""
    shipped = Flow.load(FOLDER / "flow.yaml")
    event = case_event(document={"category": category, "status": "open"})

    recipient = "street-team" if category in {"litter", "dog-fouling"} else "contractor"
    assert shipped.deliveries(event, RESIDENT) == [recipient]
    assert [name for name in shipped.recipients if shipped.delivers(name, event, RESIDENT)] == [recipient]


def test_a_confirmation_is_planned_once_for_a_case_with_an_address() -> None:
    """A new case with an e-mail address plans one confirmation; reading its event again plans the very same one."""
    shipped = Flow.load(FOLDER / "flow.yaml")
    event = case_event()

    (first,), (again,) = shipped.effects(event, RESIDENT), shipped.effects(event, RESIDENT)

    assert first == again
    assert (first.sink, first.purpose, first.occurrence) == ("email", "confirmation", "once")
    assert first.payload["to"] == "ada@example.org"
    assert first.payload["case"]["reference"] == event.reference


@pytest.mark.parametrize("personal", [{}, {"submitter": {"name": "Ada Whitfield"}}, {"submitter": "gone"}])
def test_without_an_address_nothing_is_planned(personal: dict[str, Any]) -> None:
    """A resident who left no e-mail address is sent nothing."""
    assert Flow.load(FOLDER / "flow.yaml").effects(case_event(), personal) == []


def test_a_change_of_the_case_plans_no_second_confirmation() -> None:
    """Only the event that the flow names plans an effect."""
    assert Flow.load(FOLDER / "flow.yaml").effects(case_event(2), RESIDENT) == []


def test_another_case_type_is_none_of_the_flows_business() -> None:
    """A flow neither delivers nor plans for a case of another type."""
    event = case_event(case_type="missed-bin")
    shipped = Flow.load(FOLDER / "flow.yaml")
    assert (shipped.deliveries(event, RESIDENT), shipped.effects(event, RESIDENT)) == ([], [])
    assert not shipped.plans_on(event)


def test_an_effect_for_each_version_has_an_id_for_each_version() -> None:
    """`occurrence: version` plans a new effect for each version, and the same one for the same version."""
    each = flow(HEAD + EFFECT.format(occurrence="version").replace("case.created", "case.updated"))
    case_id = uuid4()
    ids = [each.effects(case_event(version, case_id=case_id), RESIDENT)[0].effect_id for version in (2, 3, 2)]
    assert ids[0] == ids[2] != ids[1]


def test_the_id_of_an_effect_never_changes() -> None:
    """The id is a fixed function of sink, case, purpose and occurrence: a release that changed it would send twice."""
    case_id = UUID("7c9e6679-7425-40de-944b-e07fc1f90ae7")
    (planned,) = flow(HEAD + EFFECT.format(occurrence="once")).effects(case_event(case_id=case_id), RESIDENT)
    assert planned.effect_id == UUID("1bd28be9-aa1f-5ac6-8c8f-02bba1774c05")


def test_what_is_planned_shows_nothing_personal_in_logs() -> None:
    """The repr of a planned effect names ids and purposes, no person."""
    (planned,) = flow(HEAD + EFFECT.format(occurrence="once")).effects(case_event(), RESIDENT)
    assert "ada" not in repr(planned).lower()


@given(value=st.none() | st.sampled_from(CATEGORIES), listed=st.sets(st.sampled_from(CATEGORIES), min_size=1))
def test_in_and_not_in_are_opposites(value: str | None, listed: set[str]) -> None:
    """Whatever a field holds, and also where the case lacks it, exactly one of `in` and `not_in` holds."""
    inside, outside = (Condition.model_validate({test: list(listed)}) for test in ("in", "not_in"))
    assert inside.holds(value) is not outside.holds(value)


def test_present_and_equals() -> None:
    """`present` asks whether a field is there, `equals` what it is; a false or empty value is there."""
    assert [Condition(present=True).holds(value) for value in (False, 0, "", None)] == [True, True, True, False]
    assert [Condition(present=False).holds(value) for value in (False, None)] == [False, True]
    assert [Condition(equals="open").holds(value) for value in ("open", "closed", None)] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flow: x\n", ["flow.yaml:1: case_type: is missing"]),
        (HEAD + "deliver:\n  - to: a\n    on: [case.deleted]\n", ["flow.yaml:5: deliver.0.on.0: "]),
        (HEAD + "deliver:\n  - to: a\n    on: []\n", ["flow.yaml:5: deliver.0.on: "]),
        (
            HEAD + "deliver:\n  - to: a\n    on: [case.created]\n    wehn: {}\n",
            ["flow.yaml:6: deliver.0.wehn: "],
        ),
        (
            HEAD + "deliver:\n  - to: a\n    on: [case.created]\n    when:\n      category: {in: [], equals: x}\n",
            ["flow.yaml:7: deliver.0.when.category.in: "],
        ),
        (
            HEAD + "deliver:\n  - to: a\n    on: [case.created]\n    when:\n      category: {not_in: [x], equals: x}\n",
            ["flow.yaml:7: deliver.0.when.category: needs exactly one of"],
        ),
        (
            HEAD + "deliver:\n  - to: a\n    on: [case.created]\n    when:\n      category: {equals: }\n",
            ["flow.yaml:7: deliver.0.when.category: needs exactly one of"],
        ),
        (HEAD + EFFECT.format(occurrence="daily"), ["flow.yaml:9: effects.0.occurrence: "]),
        (HEAD + EFFECT.format(occurrence="once").replace("email\n", "e mail\n", 1), ["flow.yaml:6: effects.0.sink: "]),
        (
            HEAD + EFFECT.format(occurrence="once") + EFFECT.format(occurrence="version").partition("\n")[2],
            ["flow.yaml:10: effects.1.purpose: is used twice for the sink email"],
        ),
    ],
)
def test_a_mistake_is_named_by_line_and_field(text: str, expected: list[str]) -> None:
    """Each mistake in a flow file is reported with its file, its line and its field."""
    found = mistakes(text)
    assert len(found) == len(expected), found
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def test_on_is_a_word_and_not_a_truth_value() -> None:
    """YAML 1.1 reads the key `on` as true; in a flow it is the word it looks like."""
    read = flow(HEAD + "deliver:\n  - to: street-team\n    on: [case.created]\n")
    assert read.deliver[0].on == ("case.created",)
