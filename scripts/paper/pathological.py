#!/usr/bin/env python3
"""Pathological matrices: does the decomposition converge on them, by basis, and what is left after clustering?

    python scripts/paper/pathological.py [--size 256] [--max-iter 500] [--bits 4]

One of the checks that the paper leaves open. Diagonal and identity matrices, few nonzero entries, rank one, singular
values from 1 to 1e-8, and two matrices that hold what the DCT maps to single spikes. For each basis: iterations,
residual, whether converged, and the relative squared error after clustering with b bits a weight; beside it k-means of
single weights, uniform groups of 128 and the annealed encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import KINDS, command, label, new_parser, random_matrix, save, settings_of
from plots import plt

from kquant_cli.bases import make_basis
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode


def sparse(n: int, share: float) -> torch.Tensor:
    """Gaussian entries at that share of the places, zeros elsewhere."""
    kept = torch.from_numpy(np.random.RandomState(1).random_sample((n, n)) < share)
    return random_matrix(n, n) * kept


def ill_conditioned(n: int) -> torch.Tensor:
    """Random singular vectors, singular values from 1 down to 1e-8."""
    u, v = (make_basis("qr", n, seed).dense() for seed in (5, 6))
    return ((u * torch.logspace(0, -8, n, dtype=torch.float64)) @ v.T).float()


def smooth(n: int) -> torch.Tensor:
    """A single entry after the DCT of rows and columns: as smooth as a matrix can be."""
    spike = torch.zeros(n, n)
    spike[1, 2] = n
    dct = make_basis("dct", n)
    return dct.apply(dct.apply(spike, dim=0), dim=1)


MATRICES: dict[str, Callable[[int], torch.Tensor]] = {
    "Gaussian": lambda n: random_matrix(n, n),
    "Student-t(3)": lambda n: random_matrix(n, n, heavy=True),
    "identity": torch.eye,
    "Gaussian diagonal": lambda n: torch.diag(random_matrix(n, 1)[:, 0]),
    "1% nonzero": lambda n: sparse(n, 0.01),
    "10% nonzero": lambda n: sparse(n, 0.1),
    "one entry": lambda n: torch.eye(n)[:, :1] @ torch.eye(n)[:1],
    "rank one": lambda n: random_matrix(n, 1) @ random_matrix(1, n, 2),
    "singular values 1 .. 1e-8": ill_conditioned,
    "1% of the columns x 50": lambda n: random_matrix(n, n) * torch.where(torch.arange(n) % 100 == 7, 50, 1),
    "one DCT coefficient": smooth,
}
OTHERS: dict[str, dict[str, Any]] = {
    "kmeans": {"encoder": "kmeans"},
    "uniform, groups of 128": {"encoder": "uniform"},
    "annealed": {"encoder": "annealed"},
}


def measure(args: Any) -> list[dict[str, Any]]:
    rows = []
    for name in args.matrices:
        weight = MATRICES[name](args.size)
        methods = {kind: {"encoder": "greedy", **settings_of(kind, args.size)} for kind in args.bases}
        for method, settings in (methods | OTHERS).items():
            limits = {"max_iter": args.max_iter} if method in methods else {}
            record = encode(weight, EncoderConfig(bits=args.bits, **settings, **limits)).record
            assert record is not None
            row = {"matrix": name, "method": method, "relative_squared_error": record.relative_error**2}
            if method in methods:
                residual = record.trace[-1] if record.trace else 0.0
                row |= {"converged": record.converged, "iterations": record.iterations, "residual": residual}
            rows.append(row)
            print(row, flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> plt.Figure:
    names, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("matrix", "method"))
    panels = {"residual": "log10 of the residual", "relative_squared_error": "log10 of the clustered squared error"}
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.36 * len(names) + 2), sharey=True, layout="constrained")
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        shown = methods if key == "relative_squared_error" else [m for m in methods if m not in OTHERS]
        values = {(row["matrix"], row["method"]): row.get(key) for row in rows}
        grid = np.array([[np.log10(max(values[name, method], 1e-8)) for method in shown] for name in names])
        image = axis.imshow(grid, aspect="auto", cmap="viridis_r")
        axis.set_xticks(range(len(shown)), [label(method) for method in shown], rotation=40, ha="right", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(title, fontsize=9)
        for (i, j), value in np.ndenumerate(grid):
            colour = "k" if value < grid.mean() else "w"
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6.5, color=colour)
        figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--max-iter", type=int, default=500)
    parser.add_argument("--bases", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--matrices", nargs="+", choices=MATRICES, default=list(MATRICES))
    args = parser.parse_args(argv)
    rows = measure(args)
    facts = {"size": args.size, "bits": args.bits, "max_iter": args.max_iter}
    save(args.output, "pathological", {**facts, "rows": rows}, draw(rows))


if __name__ == "__main__":
    command(main)
