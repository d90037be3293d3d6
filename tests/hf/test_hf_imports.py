"""What rooms import: only what stands below them, and nothing slow where a name alone is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kquant_cli

ROOT = Path(kquant_cli.__file__).parent


def imported(path: Path) -> set[str]:
    """The rooms and modules at the top of kquant_cli that a file, or the files of a folder, name in imports."""
    found = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "kquant_cli":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kquant_cli."):
                found.add((node.module or "").split(".")[1])
    return found - {path.stem}


def reached(room: str) -> set[str]:
    """All that a room imports, and what that imports."""
    found: set[str] = set()
    waiting = {room}
    while waiting:
        name = waiting.pop()
        path = ROOT / name if (ROOT / name).is_dir() else ROOT / f"{name}.py"
        waiting |= imported(path) - found
        found |= imported(path)
    return found


def test_hf_is_low_and_allocation_knows_nothing() -> None:
    assert imported(ROOT / "hf") <= {"checkpoint", "files", "errors", "devices", "suggestions"}
    assert imported(ROOT / "allocation") == {"packing"}
    assert imported(ROOT / "divergence.py") == set()


@pytest.mark.parametrize("room", ["compress", "calibration", "runtime"])
def test_evaluation_is_above(room: str) -> None:
    assert not reached(room) & {"evaluation", "speed", "report", "cli"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("kquant_cli", ("torch", "transformers")),
        ("kquant_cli.calibration", ("transformers",)),
        ("kquant_cli.compress.preparation", ("transformers",)),
        ("kquant_cli.compress.plan", ("transformers",)),
        ("kquant_cli.hf.limits, kquant_cli.hf.tokens, kquant_cli.hf.quiet, kquant_cli.hf.failures", ("transformers",)),
        ("kquant_cli.allocation", ("transformers",)),
    ],
)
def test_importing_is_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
