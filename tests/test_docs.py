"""The README shows what the scripts measured, and names what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_figures_are_those_of_the_results():
    command = [sys.executable, ROOT / "scripts" / "readme.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", [ROOT, ROOT / "scripts" / "paper"], ids=["project", "paper"])
def test_what_it_names_is_there(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"\]\(([\w./-]+)\)", text)):
        assert (folder / name).exists(), name
    for name in set(re.findall(r"(?:`|python )((?:scripts|configs)/[\w./-]*)", text)):
        assert (ROOT / name).exists(), name


def test_settings_table_is_complete():
    from kquant_cli.config import CompressConfig

    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "configs" / "default.yaml").read_text()
    for name in CompressConfig.model_fields:
        assert name in text, name
