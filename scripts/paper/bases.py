#!/usr/bin/env python3
"""Structured against random bases: the final quality of the paper's encoder and its time, by basis.

    python scripts/paper/bases.py [--size 512] [--seeds 3] [--data lambada_test_plain_text.txt [--limit 100]]

One of the checks that the paper leaves open. For each basis the relative squared error at b bits on a Gaussian, a
Student-t(3) matrix and the layers of --model (mean over the draws of the basis), the CPU seconds of encoding them in
one thread (the sum over the matrices of the least over the draws), and with --data the perplexity of the whole model,
every layer encoded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import KINDS, command, label, layers, new_parser, random_matrix, save, settings_of
from models import Measure, compressed
from plots import plt

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.evaluation import EvalOptions

NOTE = "seconds of one CPU thread, so that other work on the machine counts for little"
ONE_SIZE = [kind for kind in KINDS if kind != "givens_n_log_n"]  # its count depends on the size


def measure(kind: str, matrices: dict[str, Any], args: Any) -> dict[str, Any]:
    """Errors by matrix, and the time of all."""
    row: dict[str, Any] = {"basis": kind, "label": label(kind), "seconds": 0.0, "iterations": {}, "errors": {}}
    for name, weight in matrices.items():
        found, times = [], []
        settings = {"encoder": "greedy", "bits": args.bits, "max_iter": args.max_iter}
        for seed in range(args.seeds):
            began = time.process_time()
            encoded = encode(weight, EncoderConfig(**settings, **settings_of(kind, max(weight.shape)), seed=seed))
            times.append(time.process_time() - began)
            assert encoded.record is not None
            found.append(encoded.record)
        row["errors"][name] = sum(record.relative_error**2 for record in found) / len(found)
        row["iterations"][name] = sum(record.iterations for record in found) / len(found)
        row["seconds"] += min(times)
    return row


def draw(rows: list[dict[str, Any]], bits: int) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    names = [row["label"] for row in rows]
    for name in rows[0]["errors"]:
        left.plot([row["errors"][name] for row in rows], names, "o", markersize=5, label=name, alpha=0.8)
    left.set_xscale("log")
    left.set_xlabel(f"relative squared error at {bits} bits")
    left.legend(fontsize=6)
    fastest = min(row["seconds"] for row in rows)
    right.barh(names, [row["seconds"] / fastest for row in rows], color="tab:blue")
    right.set_xlabel("CPU time over the least")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__, models=True)
    parser.add_argument("--size", type=int, default=512, help="of the random matrices")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--max-iter", type=int, default=200)
    parser.add_argument("--bases", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--data", type=Path, help="LAMBADA: then also the perplexity of the (first) model")
    parser.add_argument("--limit", type=int, default=100, help="windows of it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    matrices = {
        "Gaussian": random_matrix(args.size, args.size),
        "Student-t(3)": random_matrix(args.size, args.size, heavy=True),
        **layers(args.model, args.layers),
    }
    task = None if args.data is None else Measure.of("lambada_text", EvalOptions(data=args.data, limit=args.limit))
    rows = []
    for kind in args.bases:
        rows.append(measure(kind, matrices, args))
        if task is not None and kind in ONE_SIZE:
            settings = {"encoder": "greedy", "bits": args.bits, "calibration": "none", "max_iter": args.max_iter}
            whole = compressed(args.model[0], settings | {"basis": kind}, task)
            rows[-1] |= {"perplexity": whole["metrics"]["perplexity"], "converged_share": whole["converged_share"]}
        print(rows[-1], flush=True)
    facts = {"note": NOTE, "bits": args.bits, "max_iter": args.max_iter, "seeds": args.seeds}
    if task is not None:
        dense = task(args.model[0])["metrics"]["perplexity"]
        facts |= {"model": args.model[0].name, "limit": args.limit, "dense": dense}
    save(args.output, "bases", {**facts, "rows": rows}, draw(rows, args.bits))


if __name__ == "__main__":
    command(main)
