#!/usr/bin/env python3
"""Figure 4: the time of the vector and the matrix form of the decomposition, DCT against a random Q, over the size.

    python scripts/paper/figure4.py [--sizes 8 16 32 64 128 256] [--largest-dense 4096]

A Gaussian n x n matrix until the residual is below the tolerance. The vector form takes its n^2 numbers as one vector
with a basis of size n^2 (for a random Q: n^4 numbers, so only while n^2 is at most --largest-dense); the matrix form
takes two bases of size n. Making the bases is timed apart. CPU seconds of one thread; the least of several
runs counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import basis, command, new_parser, random_matrix, save
from plots import plt

from kquant_cli.decomposition import KashinFactors, decompose_matrix, decompose_vector

KINDS = ("dct", "qr")


def timed(run: Callable[[], KashinFactors], repeats: int) -> tuple[float, KashinFactors]:
    """The least seconds of several runs, after one that makes the tables, and the result."""
    factors, best = run(), float("inf")
    for _ in range(repeats):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best, factors


def measure(args: Any) -> list[dict[str, Any]]:
    limits = {"max_iter": args.max_iter, "tol": args.tol}
    rows = []
    for n in args.sizes:
        weight = random_matrix(n, n)
        for kind in KINDS:
            for form in ("vector", "matrix"):
                if form == "vector" and kind == "qr" and n * n > args.largest_dense:
                    continue
                began = time.process_time()
                if form == "vector":
                    run = partial(decompose_vector, weight.view(1, -1), basis(kind, n * n), **limits)
                else:
                    run = partial(decompose_matrix, weight, basis(kind, n, 1), basis(kind, n), **limits)
                setup = time.process_time() - began
                seconds, factors = timed(run, args.repeats)
                row = {"n": n, "basis": kind, "form": form, "seconds": seconds, "setup_seconds": setup}
                row |= {"iterations": factors.iterations, "converged": factors.converged}
                rows.append(row)
                print(row, flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind in KINDS:
        for form, style in (("vector", "o--"), ("matrix", "s-")):
            points = [(row["n"], row["seconds"]) for row in rows if (row["basis"], row["form"]) == (kind, form)]
            if points:
                axis.loglog(*zip(*points, strict=True), style, label=f"{kind}, {form} form", markersize=4)
    axis.set_xlabel("n, of an n x n matrix")
    axis.set_ylabel("CPU seconds to converge")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--largest-dense", type=int, default=4096, help="the largest size of a dense Q in vector form")
    parser.add_argument("--max-iter", type=int, default=200)
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = measure(args)
    facts = {"note": "seconds of one CPU thread", "tol": args.tol, "repeats": args.repeats}
    save(args.output, "figure4", {**facts, "rows": rows}, draw(rows))


if __name__ == "__main__":
    command(main)
