#!/usr/bin/env python3
"""Quality over the number of iterations, and over the threshold at which the decomposition stops.

    python scripts/paper/iterations.py [--model FOLDER] [--basis dct] [--data lambada_test_plain_text.txt]

One of the checks that the paper leaves open: does it pay to iterate until 1e-6? The relative squared error after
clustering, at b bits, on a Gaussian, a Student-t(3) matrix and layers of --model, for some numbers of iterations and
some thresholds; with --data also the perplexity of the whole (first) model, every layer encoded. Fewer than b
iterations give fewer different pairs than there are centroids: k-means is slow then, for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import command, layers, new_parser, random_matrix, save
from models import Measure, compressed
from plots import plt

from kquant_cli.bases import BASES
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.evaluation import EvalOptions

SMALLEST = 1e-12  # a threshold that none reaches in float32: all iterations are taken


def measure(limits: dict[str, Any], matrices: dict[str, Any], args: Any, task: Measure | None) -> dict[str, Any]:
    """Errors, iterations and residuals by matrix under these limits."""
    settings = {"encoder": "greedy", "bits": args.bits, "basis": args.basis, **limits}
    row: dict[str, Any] = {**limits, "errors": {}, "iterations": {}, "residuals": {}}
    for name, weight in matrices.items():
        record = encode(weight, EncoderConfig(**settings)).record
        assert record is not None
        row["errors"][name] = record.relative_error**2
        row["iterations"][name] = record.iterations
        row["residuals"][name] = record.trace[-1]
    if task is not None:
        row["perplexity"] = compressed(args.model[0], settings | {"calibration": "none"}, task)["metrics"]["perplexity"]
    print(row, flush=True)
    return row


def draw(rows: list[dict[str, Any]], bits: int) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    by_count, by_threshold = ([row for row in rows if row["varied"] == what] for what in ("max_iter", "tol"))
    for name in rows[0]["errors"]:
        for axis, some, key in zip(axes, (by_count, by_threshold), ("max_iter", "tol"), strict=True):
            errors = [row["errors"][name] for row in some]
            axis.loglog([row[key] for row in some], errors, "o-", markersize=3, label=name)
    axes[0].set_xlabel("iterations")
    axes[1].set_xlabel("threshold of the residual")
    axes[1].invert_xaxis()
    axes[0].set_ylabel(f"relative squared error at {bits} bits")
    axes[0].legend(fontsize=6)
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__, models=True)
    parser.add_argument("--size", type=int, default=512, help="of the random matrices")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--basis", default="dct", choices=BASES)
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 6, 8, 12, 20, 30, 100])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.03, 0.01, 1e-3, 1e-6])
    parser.add_argument("--max-iter", type=int, default=200, help="beside the thresholds")
    parser.add_argument("--data", type=Path, help="LAMBADA: then also the perplexity of the (first) model")
    parser.add_argument("--limit", type=int, default=100, help="windows of it")
    args = parser.parse_args(argv)
    matrices = {
        "Gaussian": random_matrix(args.size, args.size),
        "Student-t(3)": random_matrix(args.size, args.size, heavy=True),
        **layers(args.model, args.layers),
    }
    task = None if args.data is None else Measure.of("lambada_text", EvalOptions(data=args.data, limit=args.limit))
    cases = [("max_iter", {"max_iter": count, "tol": SMALLEST}) for count in args.counts]
    cases += [("tol", {"max_iter": args.max_iter, "tol": tol}) for tol in args.thresholds]
    rows = [{"varied": varied, **measure(limits, matrices, args, task)} for varied, limits in cases]
    facts: dict[str, Any] = {"bits": args.bits, "basis": args.basis}
    if task is not None:
        dense = task(args.model[0])["metrics"]["perplexity"]
        facts |= {"model": args.model[0].name, "limit": args.limit, "dense": dense}
    save(args.output, "iterations", {**facts, "rows": rows}, draw(rows, args.bits))


if __name__ == "__main__":
    command(main)
