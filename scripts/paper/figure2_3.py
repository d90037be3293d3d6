#!/usr/bin/env python3
"""Figures 2 and 3: how fast the decomposition converges, by basis, in its vector and in its matrix form.

    python scripts/paper/figure2_3.py [--model FOLDER ... --layers '*.0.*q_proj' '*.0.*fc1'] [--max-iter 4000]

On random matrices (Gaussian; Student-t(3), which has heavy tails) and on layers of models. The vector form decomposes
some rows of each matrix one by one with a basis of the rows' size; its curve is the root mean square over them.

The authors' Givens curve is that of the identity: their code makes the rotations and discards them. Both are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from common import KINDS, basis, command, label, layers, new_parser, random_matrix, save, thinned
from plots import plt

from kquant_cli.decomposition import KashinFactors, decompose_matrix, decompose_vector

NOTE = (
    "`identity` is the authors' Givens curve: their code makes each rotation and discards it, so their Givens basis is "
    "the identity. `givens` is a product of n random rotations, `givens_n_log_n` one of n log2 n."
)


def matrix_form(weight: torch.Tensor, kind: str, max_iter: int, tol: float) -> KashinFactors:
    """weight = u + Q1 v Q2^T, with another draw of the basis on each side, as the encoder has it."""
    rows, columns = weight.shape
    return decompose_matrix(weight, basis(kind, rows, 1), basis(kind, columns, 0), max_iter=max_iter, tol=tol)


def facts_of(factors: KashinFactors, tol: float) -> dict[str, Any]:
    """What the JSON says of one decomposition; for vectors the trace is the root mean square over the rows.

    `converged`: the residual that the iteration carries got below the tolerance (for vectors: that of every row).
    """
    trace = factors.residuals
    facts: dict[str, Any] = {"converged": bool((trace[-1] < tol).all()) if len(trace) else True}
    if trace.ndim == 2:
        reached = (trace < tol).double().mean(dim=1)
        facts["rows_converged"] = float(reached[-1]) if len(reached) else 1.0
        facts["median_iterations"] = next((i + 1 for i, share in enumerate(reached.tolist()) if share >= 0.5), None)
        trace = trace.square().mean(dim=1).sqrt()
    facts |= {"iterations": factors.iterations}
    facts |= {"residual": float(trace[-1]) if len(trace) else 0.0, "trace": thinned(trace)}
    return facts


def measure(matrices: dict[str, torch.Tensor], kinds: Sequence[str], args: Any) -> list[dict[str, Any]]:
    """A row for each matrix, form and basis."""
    found = []
    for name, weight in matrices.items():
        some = weight[:: -(-len(weight) // args.rows)]
        for kind in kinds:
            vector = decompose_vector(some, basis(kind, weight.shape[1]), max_iter=args.max_iter, tol=args.tol)
            matrix = matrix_form(weight, kind, args.max_iter, args.tol)
            for form, factors in (("vector", vector), ("matrix", matrix)):
                row = {"matrix": name, "shape": list(weight.shape), "basis": kind, "form": form}
                found.append(row | facts_of(factors, args.tol))
                last = found[-1]
                print(f"{name}, {form}, {kind}: {last['residual']:.2g} after {last['iterations']}", flush=True)
    return found


def draw(rows: list[dict[str, Any]], tol: float) -> plt.Figure:
    names = list(dict.fromkeys(row["matrix"] for row in rows))
    figure, axes = plt.subplots(
        len(names), 2, figsize=(10, 2.6 * len(names)), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for row in rows:
        axis = axes[names.index(row["matrix"]), int(row["form"] == "matrix")]
        dashed = row["basis"] in ("identity", "givens", "givens_n_log_n", "householder")
        axis.loglog(*zip(*row["trace"], strict=True), "--" if dashed else "-", label=label(row["basis"]), lw=1.2)
        axis.set_title(f"{row['matrix']} {tuple(row['shape'])}, {row['form']} form", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("iteration")
    axes[0, 0].set_ylim(tol / 3, 1.5)
    figure.supylabel("relative residual", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, fontsize=8, loc="outside lower center")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__, models=True)
    parser.add_argument("--size", type=int, default=256, help="of the random matrices")
    parser.add_argument("--rows", type=int, default=32, help="rows that the vector form decomposes")
    parser.add_argument("--bases", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--max-iter", type=int, default=1000)
    parser.add_argument("--tol", type=float, default=1e-6)
    args = parser.parse_args(argv)
    matrices = {
        "Gaussian": random_matrix(args.size, args.size),
        "Student-t(3)": random_matrix(args.size, args.size, heavy=True),
        **layers(args.model, args.layers),
    }
    rows = measure(matrices, args.bases, args)
    facts = {"note": NOTE, "max_iter": args.max_iter, "tol": args.tol, "vector_rows": args.rows}
    save(args.output, "figure2_3", {**facts, "rows": rows}, draw(rows, args.tol))


if __name__ == "__main__":
    command(main)
