#!/usr/bin/env python3
"""Table 1: max(|x|_1, |Q^T x|_1) / sqrt(n) over the eigenvectors x of each Q (unit length), which bounds convergence.

    python scripts/paper/table1.py [--size 256] [--seeds 3]

A greedy step takes d^2 of the residual's energy, d = max(|r|_1, |Q^T r|_1) / (sqrt(n) |r|): a step multiplies |r| by
sqrt(1 - d^2). An eigenvector has |Q^T x|_1 = |x|_1, so there the second basis helps least: the estimate is the least of
them, and a Gaussian vector has sqrt(2 / pi) = 0.798. Eigenvectors of an orthogonal Q are complex; `complex` takes their
moduli, which no phase changes. Real residuals lie in the plane of a pair of them: `real` takes the real part, the least
over the phase. Where an eigenvalue is multiple, its eigenvectors are not unique, and a sparser one may exist:
`multiplicity` is the largest number of equal eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from common import KINDS, basis, command, label, new_parser, save

from kquant_cli.bases import Basis

PHASES = 32
SAME = 1e-6  # eigenvalues nearer than this are one


def estimate(q: Basis) -> dict[str, float]:
    """The numbers of one basis: least and mean over its eigenvectors."""
    values, vectors = torch.linalg.eig(q.dense())
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    moduli = vectors.abs().sum(dim=0) / math.sqrt(q.size)
    turns = torch.polar(torch.ones(PHASES).double(), torch.arange(PHASES).double() * math.pi / PHASES)
    real = torch.stack([_real_parts(q, (vectors * turn).real) for turn in turns]).amin(dim=0)
    same = ((values[:, None] - values[None]).abs() < SAME).sum(dim=1)
    return {
        "complex_least": float(moduli.min()),
        "complex_mean": float(moduli.mean()),
        "real_least": float(real[real.isfinite()].min()),
        "real_mean": float(real[real.isfinite()].mean()),
        "multiplicity": int(same.max()),
    }


def _real_parts(q: Basis, x: torch.Tensor) -> torch.Tensor:
    """max(|x|_1, |Q^T x|_1) / (sqrt(n) |x|) of each column (n, m); infinite where a column is next to nothing."""
    size = torch.linalg.vector_norm(x, dim=0)
    l1 = torch.maximum(x.abs().sum(dim=0), q.adjoint(x, dim=0).abs().sum(dim=0))
    return torch.where(size > 1e-3, l1 / (math.sqrt(len(x)) * size), math.inf)


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--size", type=int, default=256, help="a power of two has a basis of every kind")
    parser.add_argument("--seeds", type=int, default=3, help="draws of random bases; the mean of each number counts")
    parser.add_argument("--bases", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args(argv)
    rows = []
    for kind in args.bases:
        draws = [estimate(basis(kind, args.size, seed)) for seed in range(args.seeds)]
        means = {key: sum(draw[key] for draw in draws) / len(draws) for key in draws[0]}
        rows.append({"basis": kind, "label": label(kind), **means})
        print(rows[-1], flush=True)
    facts = {"size": args.size, "seeds": args.seeds, "gaussian": math.sqrt(2 / math.pi)}
    save(args.output, "table1", {**facts, "rows": rows})


if __name__ == "__main__":
    command(main)
