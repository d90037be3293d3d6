"""The documents show what the scripts measured and what the program has, and name what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kquant_cli.bases import BASES
from kquant_cli.cli import app
from kquant_cli.config import all_settings
from kquant_cli.evaluation import GROUPS, TASKS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "scripts" / "paper" / "README.md"])
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMANDS = [str(command.name) for command in app.registered_commands]


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """What the headings of a document can be linked as."""
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_blocks_are_those_of_the_results_and_of_the_program():
    command = [sys.executable, ROOT / "scripts" / "docs.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short_and_begins_with_installing():
    text = read("README.md")
    assert len(text.splitlines()) <= 200
    assert text.index("## Install") < text.index("    kquant compress ")
    assert text.index("from_pretrained(") < text.index("Where it is not installed")  # there it gives random weights


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    for target in set(re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        place = document.parent / file if file else document
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_and_configs_that_are_named_are_there(document):
    if document.name == "CHANGELOG.md":  # it names what once was
        return
    text = document.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:[`(]|\s)((?:scripts|configs|docs)/[\w./-]*\w)", text)):
        assert (ROOT / name).exists(), name


def test_every_setting_is_in_the_default_configuration():
    text = read("configs", "default.yaml")
    for name in all_settings():
        assert re.search(rf"^(# )?{name}:", text, re.MULTILINE), name


def test_the_guide_knows_every_command_and_task():
    text = read("docs", "guide.md")
    for name in COMMANDS:
        assert f"\n## {name}\n" in text, name
    for name in (*TASKS, *GROUPS):
        assert re.search(rf"^\|.*`{name}`.*\|", text, re.MULTILINE), name


def test_the_format_defines_every_basis():
    text = read("docs", "format.md")
    for kind in BASES:
        assert f"\n| `{kind}` |" in text, kind
