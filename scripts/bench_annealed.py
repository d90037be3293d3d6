#!/usr/bin/env python3
"""Speed of the annealed encoder: beside greedy and HQQ on a real model's matrices, over the size, and where time goes.

    python scripts/bench_annealed.py MODEL [--blocks 6] [--largest 100] [--bits 4] [--json FILE]

MODEL is a folder such as SmolLM2-135M; the matrices of `--blocks` of its decoder blocks, evenly spread, are encoded by
every method in turn, so that a shared machine treats them alike: annealed (each effort), greedy forced to 200
iterations (tol 0), and HQQ by its package where it is installed. Then annealed (fast) on Gaussian matrices of 1 to
`--largest` million weights. Where time goes: the time at several level counts is a line in the levels, whose slope is
the soft assignment and whose intercept the transforms and the passes over memory.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import hqq
from results import machine, write_results

from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode

MILLIONS = (1, 4, 16, 64, 100)
LEVELS = (4, 8, 16, 32)


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def methods(bits: int) -> dict[str, Callable[[torch.Tensor], object]]:
    """What takes turns on every matrix."""
    found: dict[str, Callable[[torch.Tensor], object]] = {
        f"annealed, {effort}": (lambda w, effort=effort: encode(w, EncoderConfig(bits=bits, effort=effort)))  # type: ignore[misc]
        for effort in ("fast", "balanced", "best")
    }
    forced = EncoderConfig(encoder="greedy", basis="hadamard", bits=bits, max_iter=200, tol=0.0)
    found["greedy, 200 iterations"] = lambda w: encode(w, forced)
    if find_spec("hqq"):
        found["HQQ"] = lambda w: hqq(w, bits)
    return found


def on_model(model: Path, blocks: int, bits: int) -> list[dict[str, Any]]:
    """Seconds of each method on the matrices of some blocks."""
    checkpoint = open_checkpoint(model)
    by_block: dict[int, list[Any]] = {}
    for matrix in select_matrices(checkpoint).matrices:
        by_block.setdefault(int(re.search(r"\d+", matrix.name)[0]), []).append(matrix)  # type: ignore[index]
    chosen = sorted(by_block)[:: max(1, len(by_block) // blocks)][:blocks]
    matrices = [matrix for block in chosen for matrix in by_block[block]]
    everything = sum(m.shape[0] * m.shape[1] for ms in by_block.values() for m in ms)
    encode(torch.randn(64, 64), EncoderConfig())  # builds what is built at the first use
    spent = dict.fromkeys(methods(bits), 0.0)
    weights = 0
    for matrix in matrices:
        weight = checkpoint.read(matrix.tensor).float()
        weights += weight.numel()
        for name, work in methods(bits).items():
            spent[name] += seconds(lambda work=work, weight=weight: work(weight))  # type: ignore[misc]
    rows = [
        {"method": name, "weights": weights, "seconds": s, "whole_model_seconds": s * everything / weights}
        for name, s in spent.items()
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def over_size(largest: int) -> list[dict[str, Any]]:
    """Fast annealing of Gaussian matrices of 4096 columns (1024 for the smallest)."""
    rows = []
    for millions in (m for m in MILLIONS if m <= largest):
        columns = 1024 if millions == 1 else 4096
        weight = torch.from_numpy(np.random.RandomState(0).standard_normal((millions * 2**20 // columns, columns)))
        weight = weight.float()
        spent = seconds(lambda weight=weight: encode(weight, EncoderConfig(effort="fast")))  # type: ignore[misc]
        rows.append({"weights": weight.numel(), "columns": columns, "seconds": spent})
        print(rows[-1], flush=True)
    return rows


def shares(size: int = 1024) -> dict[str, float]:
    """Nanoseconds a weight and sweep: a point of the codebook, and what does not depend on their number."""
    weight = torch.from_numpy(np.random.RandomState(0).standard_normal((256, size))).float()
    times = []
    for levels in LEVELS:
        slow, quick = (
            min(
                seconds(lambda e=effort, k=levels: encode(weight, EncoderConfig(levels=k, effort=e, codebook="ring")))  # type: ignore[misc]
                for _ in range(3)
            )
            for effort in ("balanced", "fast")
        )
        times.append((slow - quick) / 40 / weight.numel() * 1e9)  # 40 sweeps more
    slope, intercept = np.polyfit(LEVELS, times, 1)
    found = {"size": size, "a_point_ns": float(slope), "rest_ns": float(intercept)}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--largest", type=int, default=100, help="million weights")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    values = {"machine": machine(), "model": args.model.name, "bits": args.bits}
    values |= {"methods": on_model(args.model, args.blocks, args.bits)}
    values |= {"sizes": over_size(args.largest), "shares": shares()}
    write_results(args.json, values)


if __name__ == "__main__":
    main()
