"""What the documents say is there."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gateway.cli import main
from gateway.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob(".github/*.md"),
        *ROOT.glob("deploy/**/*.md"),
        *ROOT.glob("tests/**/*.md"),
    )
    if ".venv" not in path.parts
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(document: Path) -> None:
    """A relative link or picture names a file or folder that is there."""
    targets = re.findall(r"\]\(([^)#]+)", document.read_text())
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert missing == []


def test_every_command_of_the_readme_exists() -> None:
    """`silogate X` in the README is a command, and each command is in the README."""
    text = (ROOT / "README.md").read_text()
    commands = set(get_command(main).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`silogate ([a-z]+)", text))
    assert named == commands


def test_every_setting_of_the_documents_exists() -> None:
    """A SILOGATE_ variable in any document is a setting, or one of the two that stand outside them."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {PREFIX + "CONFIG"}
    for document in DOCUMENTS:
        for name in re.findall(r"SILOGATE_[A-Z0-9_]+", document.read_text()):
            plain = name.removesuffix("_FILE")
            fits = plain in known or re.fullmatch(r"SILOGATE_RECIPIENT_[A-Z0-9_]+_URL", plain) or "_TEST_" in name
            assert fits, f"{document.name}: {name}"


def test_every_metric_of_the_documents_exists() -> None:
    """A silogate_ name in any document is one that the code gives out."""
    code = "".join(path.read_text() for room in ("gateway", "cache", "streams") for path in (ROOT / room).rglob("*.py"))
    for document in DOCUMENTS:
        for name in re.findall(r"\bsilogate_[a-z0-9_]+", document.read_text()):
            assert f'"{name}"' in code, f"{document.name}: {name}"


def test_make_help_lists_every_target() -> None:
    """Each target of the Makefile carries its one-line help."""
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", text, re.MULTILINE)
    helped = re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE)
    assert targets == helped
    assert {"help", "demo", "test", "check", "bench", "faults", "clean"} <= set(targets)
