"""Declarations in YAML: every mistake by file, line and field."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from streams.declared import InvalidDeclaration, read


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    to: str
    every: int = 1


class Flow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    flow: str
    on: list[str]
    deliver: list[Step]


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidDeclaration) as caught:
        read(Path("flow.yaml"), text).parse(Flow)
    return [str(problem) for problem in caught.value.problems]


def test_words_stay_words() -> None:
    """`on`, `yes`, `no` and `off` are text, as in YAML 1.2; only true and false are truth values."""
    document = read(Path("flow.yaml"), "on: [yes, no, off, true]\n")
    assert document.value == {"on": ["yes", "no", "off", True]}


def test_every_mistake_has_file_line_and_field() -> None:
    """A missing field is at its parent, an unknown and a wrong one at their own line, all in one go."""
    assert mistakes("flow: a\non: [x]\ndeliver:\n  - to: b\n    evry: 2\n  - every: 3\n") == [
        "flow.yaml:5: deliver.0.evry: is not a field here; check its spelling",
        "flow.yaml:6: deliver.1.to: is missing",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flow: a\nflow: b\n", "flow.yaml:2: flow: is written twice"),
        ("flow: [a\n", "is not YAML"),
        ("- a\n", "must be a mapping"),
        ("a: &x [1]\nb: *x\n", "uses a YAML alias"),
        ("x: " + "y" * 1024 * 1024, "larger than 1 MiB"),
        ("a: 1\nb: !!python/object:x {}\n", "flow.yaml:2: could not determine a constructor for the tag"),
        ("a: 1\n? [b]\n: 2\n", "flow.yaml:2: has a key that is not one word"),
        ("a: 1\nb: 2020-13-45\n", "flow.yaml:2: a value cannot be read as timestamp; put it in quotes if it is text"),
        ("a: 1\nb:\n  - " + "9" * 5000 + "\n", "flow.yaml:3: a value cannot be read as int"),
        ("a: !!bool maybe\n", "flow.yaml:1: a value cannot be read as bool"),
        ("a: !!timestamp soon\n", "flow.yaml:1: a value cannot be read as timestamp"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "flow.yaml:1: is nested too deeply"),
        ("a: " + "[" * 5000, "flow.yaml:1: is nested too deeply"),
    ],
)
def test_what_is_not_a_plain_mapping_is_refused(text: str, says: str) -> None:
    """What YAML or Python cannot read each gets its own sentence, with its line where it has one."""
    assert says in mistakes(text)[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing or binary file is a problem of that file, not a traceback."""
    with pytest.raises(InvalidDeclaration, match=r"none\.yaml:1: cannot be read: No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9\n")
    with pytest.raises(InvalidDeclaration, match="is not UTF-8 text"):
        read(tmp_path / "latin.yaml")
