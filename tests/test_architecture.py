"""The rooms: which may import which, and no import goes in a circle. docs/architecture.md says what each is for."""

import ast
import re
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# From the ground up: a room imports from rooms above it in this table alone, and of those from no others than these.
MAY_IMPORT = {
    "errors": "",
    "suggestions": "",
    "threads": "",
    "overlap": "",
    "packing": "",
    "process_memory": "",
    "divergence": "",
    "setting_types": "",
    "native": "",
    "demo": "",
    "files": "errors",
    "devices": "errors",
    "bases": "errors suggestions threads",
    "codebooks": "threads",
    "encoded": "bases codebooks errors files packing",
    "decomposition": "bases errors suggestions threads",
    "encoders": "bases codebooks decomposition encoded native setting_types threads",
    "config": "encoders errors files setting_types suggestions",
    "checkpoint": "errors files overlap suggestions",
    "hf": "checkpoint devices errors files suggestions",
    "calibration": "checkpoint devices divergence encoders errors files hf",
    "tuning": "bases devices encoded errors files hf",
    "allocation": "packing",
    "bundle": "encoded errors files overlap packing",
    "runtime": "bases bundle checkpoint devices encoded errors files hf native packing process_memory suggestions",
    "version": "",  # kquant_cli/__init__.py: the version, and names that load on first use
    "compress": "allocation bundle calibration checkpoint config encoded encoders errors files hf native "
    "overlap process_memory tuning version",
    "evaluation": "checkpoint demo divergence errors files hf suggestions version",
    "speed": "devices errors hf native process_memory runtime",
    "report": "bundle errors",
    "cli": "bundle checkpoint compress config demo devices errors evaluation files hf report runtime speed version",
    "__main__": "cli",
}


@cache
def modules(package: Path) -> dict[str, Path]:
    """The package's modules by their dotted names."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a module imports: at its top, in its functions, or for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports have whole names"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(known)) - {module}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "version"


@pytest.fixture
def graph(pytestconfig):
    known = modules(pytestconfig.rootpath / "kquant_cli")
    return {module: imports(module, known) for module in known}


def test_a_room_imports_only_from_those_that_it_may(graph):
    used = defaultdict(set)
    for module, imported in graph.items():
        used[room(module)] |= {room(other) for other in imported} - {room(module)}
    allowed = {name: set(others.split()) for name, others in MAY_IMPORT.items()}
    assert {name: used[name] - allowed[name] for name in used if used[name] - allowed[name]} == {}
    assert {name: allowed[name] - used[name] for name in allowed if allowed[name] - used[name]} == {}, "of no use"


def test_rooms_stand_on_each_other():
    below = set()
    for name, others in MAY_IMPORT.items():
        assert set(others.split()) <= below, name
        below.add(name)


def test_no_import_goes_in_a_circle(graph):
    """Between any modules, those of one room too."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_document_has_every_room(pytestconfig):
    """In an order in which each imports from rooms above it, with what it imports from."""
    text = (pytestconfig.rootpath / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|.*\| ?(.*?) ?\|$", text, re.MULTILINE)
    shown = {name: set(filter(None, others.split(", "))) for name, others in rows}
    assert shown.pop("cli") == {"all of them"}
    left_out = {"version", "__main__", "cli"}
    expected = {name: set(others.split()) - left_out for name, others in MAY_IMPORT.items() if name not in left_out}
    assert shown == expected
    names = [name for name, _ in rows]
    assert all(names.index(other) < names.index(name) for name in expected for other in expected[name])
