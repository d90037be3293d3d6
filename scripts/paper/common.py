"""What the scripts of this folder share: options, matrices to work on, and where figures and numbers go.

Every script writes NAME.json, and most write NAME.png, into scripts/results/paper/ (or --output).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent.parent))  # scripts/

from results import RESULTS, machine, write_results

from kquant_cli.bases import Basis, make_basis
from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.checkpoint.selection import matches
from kquant_cli.demo import demo_model_path
from kquant_cli.errors import KQuantError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a list of numbers over several lines
NUMBERS = re.compile(r"\[\s+((?:[-+\d.e]+|null)(?:,\s+(?:[-+\d.e]+|null))*)\s+\]")
# The authors' code makes each Givens rotation and discards it, so that their Givens basis is the identity.
LABELS = {"identity": "Givens in the authors' code = identity", "givens": "Givens, n rotations"}
GIVENS_MANY = "givens_n_log_n"
KINDS = (
    *("identity", "givens", GIVENS_MANY, "householder", "dct", "hadamard"),
    *("signed_hadamard_dct", "butterfly", "qr"),
)


def label(kind: str) -> str:
    """The basis in a legend."""
    return LABELS.get(kind, "Givens, n log n rotations" if kind == GIVENS_MANY else kind.replace("_", " "))


def basis(kind: str, size: int, seed: int = 0) -> Basis:
    """A basis of one of kquant's kinds, or Givens with n log2 n rotations in place of n."""
    if kind == GIVENS_MANY:
        return make_basis("givens", size, seed, count=max(1, size * math.ceil(math.log2(size))))
    return make_basis(kind, size, seed)


def settings_of(kind: str, size: int) -> dict[str, Any]:
    """The same basis as the settings of an encoder, for a square matrix of that size."""
    if kind == GIVENS_MANY:
        return {"basis": "givens", "basis_count": max(1, size * math.ceil(math.log2(size)))}
    return {"basis": kind}


def new_parser(doc: str | None, *, models: bool = False) -> argparse.ArgumentParser:
    """A parser with what all scripts have, and the options of `layers` where they take models."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "paper", help="folder of the JSON and the PNG")
    if models:
        parser.add_argument("--model", type=Path, nargs="*", default=[demo_model_path()], help="folders of checkpoints")
        parser.add_argument("--layers", nargs="+", help="patterns of names; default: the first layer of each shape")
    return parser


def random_matrix(rows: int, columns: int, seed: int = 0, *, heavy: bool = False) -> torch.Tensor:
    """A matrix (rows, columns) of Gaussian entries, or of Student-t(3) ones."""
    draws = np.random.RandomState(seed)
    values = draws.standard_t(3, (rows, columns)) if heavy else draws.standard_normal((rows, columns))
    return torch.from_numpy(values).float()


def layers(models: Sequence[Path], patterns: Sequence[str] | None) -> dict[str, torch.Tensor]:
    """The chosen layers (out_features, in_features) of the checkpoints, by model and name, in float32."""
    found: dict[str, torch.Tensor] = {}
    for model in models:
        checkpoint = open_checkpoint(model)
        shapes = set()
        for matrix in select_matrices(checkpoint).matrices:
            chosen = matches(matrix.name, patterns) if patterns else matrix.shape not in shapes
            if chosen:
                shapes.add(matrix.shape)
                weight = checkpoint.read(matrix.tensor).float()
                name = f"{checkpoint.name} {matrix.name}"
                found[name] = (weight.T if matrix.transposed else weight).contiguous()
        if not shapes:
            raise KQuantError(f"{model}: none of its layers is called {', '.join(patterns or ())}: see kquant inspect")
    return found


def thinned(trace: torch.Tensor, points: int = 40) -> list[list[float]]:
    """[iteration, residual] of at most so many iterations, evenly spaced on the logarithmic axis."""
    if not len(trace):
        return []
    chosen = np.unique(np.geomspace(1, len(trace), points).round().astype(int))
    return [[int(i), float(f"{trace[i - 1]:.4g}")] for i in chosen]


def save(folder: Path, name: str, values: dict[str, Any], figure: Figure | None = None) -> None:
    """Write NAME.json, with the machine, and NAME.png."""
    file = folder / f"{name}.json"
    write_results(file, {"machine": machine(), **rounded(values)})
    text = file.read_text(encoding="utf-8")
    file.write_text(NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text), encoding="utf-8")
    if figure is not None:
        from plots import write_png

        write_png(figure, folder / f"{name}.png")
    print(f"written: {file}", flush=True)


def rounded(value: Any) -> Any:
    """Five significant digits are enough in a file; what is not finite is null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


def earlier(folder: Path, name: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run under the same `facts`, which this run adds to."""
    file = folder / f"{name}.json"
    if not file.exists():
        return []
    values = json.loads(file.read_text(encoding="utf-8"))
    same = all(values.get(key) == value for key, value in rounded(facts).items())
    return values["rows"] if same else []


def command(main: Callable[[], None]) -> None:
    """Run a script: what the user can mend is one sentence and the exit code 2."""
    try:
        main()
    except KQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
