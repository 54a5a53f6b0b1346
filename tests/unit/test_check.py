"""`silogate check`: what is shipped is sound; each mistake in a copy is named by file, line and field."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import main
from gateway.integrations import read_folders

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """A copy of the shipped integrations and silos, free to be broken."""
    for name in ("integrations", "silos"):
        shutil.copytree(DEPLOY / name, tmp_path / name)
    return tmp_path


def mistakes(deploy: Path) -> list[str]:
    found = read_folders(deploy / "integrations", deploy / "silos").problems
    return [str(problem).removeprefix(str(deploy) + "/") for problem in found]


def test_the_shipped_folders_are_sound() -> None:
    """What the demo runs on passes its own check, with all its lookups, recipients and silos."""
    found = read_folders(DEPLOY / "integrations", DEPLOY / "silos")
    assert [str(problem) for problem in found.problems] == []
    (integration,) = found.integrations
    assert {lookup.name for lookup in integration.lookups} == {
        "addresses-by-postcode",
        "asset-by-uprn",
        "assets-near",
        "assets-near-position",
        "asset-with-reports",
        "streets-by-prefix",
        "asset-already-reported",
        "claim-already-open",
        "known-details",
    }
    assert set(integration.recipients) == {"street-team", "contractor"}
    assert set(found.silos) == {"assets", "addresses", "claims"}


REPORT = "integrations/report-a-problem"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (f"{REPORT}/lookups/asset-by-uprn.yaml", "type: uprn", "type: urpn", ":5: parameters.uprn.type: is not a type"),
        (f"{REPORT}/lookups/asset-by-uprn.yaml", '"60002210"', "Lancing", ":5: parameters.uprn.example: "),
        (f"{REPORT}/lookups/asset-by-uprn.yaml", "shape: one", "shape: some", ":7: shape: "),
        (f"{REPORT}/lookups/asset-by-uprn.yaml", "toilet: {index", "tolet: {index", ":9: tags: "),
        (f"{REPORT}/lookups/asset-by-uprn.yaml", "index: uprn,", "index: usrn,", ":9: tags: "),
        (f"{REPORT}/lookups/asset-by-uprn.yaml", "silo: assets", "silo: asets", ":3: silo: "),
        (
            f"{REPORT}/lookups/asset-by-uprn.yaml",
            "\nttl: 6h",
            "\nttl: 6 hours",
            ":12: ttl: '6 hours' is not a duration",
        ),
        (f"{REPORT}/lookups/asset-by-uprn.yaml", "sql: asset-by-uprn.sql", "sql: gone.sql", ":6: sql: names gone.sql"),
        (f"{REPORT}/lookups/asset-by-uprn.sql", ":uprn", ":urpn", "asset-by-uprn.sql:1: :urpn is not a parameter"),
        (f"{REPORT}/lookups/asset-by-uprn.sql", "select", "delete", "asset-by-uprn.sql:1: a lookup is one SELECT"),
        (f"{REPORT}/lookups/known-details.yaml", "private, no-store", "max-age=60", ":20: cache_control: "),
        (f"{REPORT}/lookups/known-details.yaml", "scope: lookups:known-details", "scope: lookups:all", ":13: scope: "),
        (f"{REPORT}/lookups/known-details.yaml", "lookup: known-details", "lookup: known", ":1: lookup: "),
        (f"{REPORT}/integration.yaml", "contractor]", "contracter]", ":10: recipients.1: has no file"),
        (f"{REPORT}/integration.yaml", "flow: flow.yaml", "flows: flow.yaml", ":9: flows: is not a field here"),
        (f"{REPORT}/case.schema.json", '"enum": ["open"', '"enam": ["open"', "case.schema.json:1: the property status"),
        (f"{REPORT}/case.schema.json", '"title"', "title", "case.schema.json:4: is not JSON"),
        (
            f"{REPORT}/case.schema.json",
            '"x-personal": true',
            '"x-personal": "yes"',
            "case.schema.json:1: /properties/submitter/x-personal: is true or false",
        ),
        (
            f"{REPORT}/case.schema.json",
            '"x-personal"',
            '"x-Personal"',
            "case.schema.json:1: /properties/submitter/x-Personal: is not a word",
        ),
        (
            f"{REPORT}/case.schema.json",
            '"type": "object"',
            '"type": "objekt"',
            "case.schema.json:1: /type: not a usable",
        ),
        (
            f"{REPORT}/case.schema.json",
            '"x-personal": true',
            '"x-personal": true, "x-personal": false',
            "case.schema.json:1: x-personal: is written twice",
        ),
        (
            f"{REPORT}/case.schema.json",
            '"category": "litter"',
            '"category": "liter"',
            "case.schema.json:1: /examples/0/category: is not one of the allowed values",
        ),
        (f"{REPORT}/case.schema.json", '"examples": [', '"examples": [5,', "/examples/0: is not an object"),
        (f"{REPORT}/case.schema.json", '"maximum": 700000', '"maximum": 7' + "0" * 5000, "a number is too long"),
        (f"{REPORT}/flow.yaml", "street-team", "street-teem", "flow.yaml:"),
        (f"{REPORT}/recipients/contractor.yaml", "kind: postgres", "kind: postgras", "contractor.yaml:"),
        ("silos/assets/silo.yaml", "silo: assets", "silo: assets\ncolour: red", "silo.yaml:"),
    ],
)
def test_each_mistake_is_named(deploy: Path, file: str, old: str, new: str, says: str) -> None:
    """One wrong word gives a sentence with the file, the line and the field."""
    path = deploy / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    found = mistakes(deploy)
    assert any(file.rsplit("/", 1)[0] in line and says in line for line in found), found


def test_every_mistake_is_listed_not_only_the_first(deploy: Path) -> None:
    """Two broken lookups give two sentences in one run."""
    for name in ("asset-by-uprn", "known-details"):
        path = deploy / REPORT / "lookups" / f"{name}.yaml"
        path.write_text(path.read_text().replace("shape: one", "shape: some"))
    assert len([line for line in mistakes(deploy) if "shape" in line]) == 2


def test_the_command_exits_with_1_and_lists_rows(deploy: Path) -> None:
    """The command line fails on a mistake, and `--json` gives file, line, field and message."""
    path = deploy / REPORT / "lookups" / "asset-by-uprn.yaml"
    path.write_text(path.read_text().replace("shape: one", "shape: some"))
    arguments = ["check", str(deploy / "integrations"), "--silos", str(deploy / "silos"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    (row,) = [row for row in json.loads(result.stdout)["problems"] if row["field"] == "shape"]
    assert row["line"] == 7
    assert row["file"].endswith("asset-by-uprn.yaml")


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({"submitter": {"name": " \u2003 "}}, "/submitter/name"),
        ({"submitter": {"name": "Avery\nQuill"}}, "/submitter/name"),
        ({"asset": {"uprn": "60002210", "name": "  "}}, "/asset/name"),
        ({"asset": {"uprn": "60002210", "name": "Monks\u0007"}}, "/asset/name"),
        ({"notes": [{"text": " \n\t "}]}, "/notes/0/text"),
    ],
)
def test_the_shipped_case_type_wants_something_to_read(document: dict[str, object], pointer: str) -> None:
    """White space is neither a name nor a report, and a name has no control characters."""
    (integration,) = read_folders(DEPLOY / "integrations", DEPLOY / "silos").integrations
    case_type = integration.case_type
    assert case_type is not None
    (example,) = case_type.type.schema["examples"]
    assert [problem.pointer for problem in case_type.type.validate({**example, **document})] == [pointer]
    sound = {"submitter": {"name": "Zo\u00eb \u674e"}, "notes": [{"text": "\n  Needle.\n"}]}
    assert case_type.type.validate({**example, **sound}) == []


def test_a_schema_that_is_not_an_object_is_named(deploy: Path) -> None:
    """A list, or nesting without end, is a sentence and not a traceback."""
    for text, says in (("[1]", "must be an object"), ("[" * 100_000, "cannot be read")):
        (deploy / REPORT / "case.schema.json").write_text(text)
        assert any(says in line for line in mistakes(deploy))


def test_an_empty_folder_is_a_mistake(tmp_path: Path) -> None:
    """A wrong path never reads as `no mistakes`."""
    assert [str(problem) for problem in read_folders(tmp_path / "x", tmp_path / "y").problems] == [
        f"{tmp_path}/y:1: holds no folder with a file silo.yaml",
        f"{tmp_path}/x:1: holds no folder with a file integration.yaml",
    ]
