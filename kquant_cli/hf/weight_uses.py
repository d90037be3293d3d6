"""Where the code of transformers' models computes with a layer's weight itself, past the layer's own forward.

    time_step = self.dt_proj.weight @ time_step        (Mamba)
    block.attention.output.weight.div_(2)              (RWKV)

A weight that is encoded is not there to be multiplied, sliced or changed. What the source says is found here without
importing it; whether it concerns a given model, running that model shows (weight_probe.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

ATTRIBUTE: Final = "weight"
DESCRIBES: Final = frozenset(
    ("dtype", "device", "shape", "ndim", "size", "dim", "numel", "is_cuda", "requires_grad", "element_size", "stride")
)
NOT_FORWARD: Final = re.compile(r"(?:^|_)(?:init|tie|resize|reset|convert|freeze|replace|load|prune)|embeddings$")
MAY_USE: Final = re.compile(rf"(?<!self)\.{ATTRIBUTE}\b(?!\.(?:{'|'.join(sorted(DESCRIBES))})\b)")
TOP_LEVEL: Final = re.compile(r"^(?=class |def |@)", re.MULTILINE)
MODEL_TYPE: Final = re.compile(r"^    model_type(?:: \w+)? = [\"'](.+?)[\"']", re.MULTILINE)
OTHER_FILE: Final = re.compile(r"^from \.\.(\w+)\.(modeling_\w+) import", re.MULTILINE)


@dataclass(frozen=True)
class WeightUse:
    """A use of `<...>.name.weight`; `owner` is the class whose own `self.name` it is, None: whose is not said."""

    name: str
    owner: str | None


def uses_of(config: Mapping[str, Any]) -> frozenset[WeightUse]:
    """What the code of the architectures in `config` (of a config.json) does with weights; nothing for unknown ones.

    Parts of a model have configs in the config. What is only for training is left out.
    """
    folders = {folder for kind in _model_types(config) if (folder := _folder(kind)) is not None}
    files = [file for folder in sorted(folders) for file in sorted(folder.glob("modeling_*.py"))]
    uses: set[WeightUse] = set()
    seen: set[Path] = set()
    while files:
        file = files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8")
        files += [file.parents[1] / folder / f"{name}.py" for folder, name in OTHER_FILE.findall(text)]
        for part in TOP_LEVEL.split(text):
            if MAY_USE.search(part):  # most of a file need not be parsed
                uses |= set(_uses(_parsed(part, text), None))
    return frozenset(uses)


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("model_type")
    if isinstance(kind, str):
        yield kind
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _model_types(part)


def _folder(model_type: str) -> Path | None:
    """The folder of transformers' code for `model_type`, without importing it; None where it does not know the type."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    models = Path(spec.submodule_search_locations[0]) / "models"
    named = model_type.replace("-", "_")
    if named.isidentifier() and (models / named).is_dir():
        return models / named
    return _folders_by_type(models).get(model_type)


@cache
def _folders_by_type(models: Path) -> dict[str, Path]:
    """For the parts of models, and the few whose folder has another name: what the configs' classes say."""
    files = models.glob("*/configuration_*.py")
    return {kind: file.parent for file in files for kind in MODEL_TYPE.findall(file.read_text(encoding="utf-8"))}


def _parsed(part: str, whole: str) -> ast.AST:
    """The part of a file, or all of it where the part cannot be read alone (a string whose lines look like code)."""
    try:
        return ast.parse(part)
    except SyntaxError:
        return ast.parse(whole)


def _uses(node: ast.AST, owner: str | None) -> Iterator[WeightUse]:
    """Those under `node`, which is in the class `owner`."""
    if isinstance(node, ast.FunctionDef) and NOT_FORWARD.search(node.name):
        return
    if isinstance(node, ast.ClassDef):
        owner = node.name
    if isinstance(node, ast.Attribute):
        if node.attr in DESCRIBES and isinstance(node.value, ast.Attribute) and node.value.attr == ATTRIBUTE:
            return
        if node.attr == ATTRIBUTE and isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Attribute):
            holder = node.value.value
            own = isinstance(holder, ast.Name) and holder.id == "self"
            yield WeightUse(node.value.attr, owner if own else None)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "hasattr"):
        return
    if isinstance(node, ast.If) and _is_training(node.test):
        children = [*ast.iter_child_nodes(node.test), *node.orelse]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _uses(child, owner)


def _is_training(test: ast.expr) -> bool:
    """Whether the test is false outside training: `self.training`, or that and something else."""
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    return any(isinstance(part, ast.Attribute) and part.attr == "training" for part in parts)
