#!/usr/bin/env python3
"""Relative squared error of the encoders on random matrices, beside scalar and planar quantisers and the bound.

    python scripts/measure_errors.py [--size 1024] [--seeds 3] [--json FILE]

First Gaussian matrices (size x size, the mean over the seeds) at every effort, in one table with rotation + Lloyd-Max,
a planar grid of HIGGS's rate, the paper's greedy encoder and the rate-distortion bound 4^-bits; then other kinds and
sizes of matrices, as ratios to the Gaussian error of the same encoder, bits and size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import higgs_like, lloyd_max_rotated
from results import machine, write_results
from torch import Tensor

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode

RATES: tuple[dict[str, int], ...] = (
    *({"levels": 3}, {"levels": 6}, {"levels": 12}),
    *({"bits": bits} for bits in (1, 2, 3, 4, 5, 6, 8)),
)
SIZES = ((576, 576), (1536, 576), (768, 3072), (3072, 768), (576, 1536), (512, 11008))


def gaussian(rows: int, columns: int, seed: int) -> Tensor:
    """Independent normal entries."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, columns))).float()


def student(rows: int, columns: int, seed: int) -> Tensor:
    """Student's t with four degrees of freedom."""
    return torch.from_numpy(np.random.RandomState(seed).standard_t(4, (rows, columns))).float()


def loud_columns(rows: int, columns: int, seed: int) -> Tensor:
    """1% of the columns times 20."""
    draws = np.random.RandomState(seed)
    x = draws.standard_normal((rows, columns))
    x[:, draws.permutation(columns)[: max(1, columns // 100)]] *= 20
    return torch.from_numpy(x).float()


def offsets(rows: int, columns: int, seed: int) -> Tensor:
    """A mean for each row, of twice the size of the entries."""
    draws = np.random.RandomState(seed)
    return torch.from_numpy(draws.standard_normal((rows, columns)) + 2 * draws.standard_normal((rows, 1))).float()


def low_rank(rows: int, columns: int, seed: int) -> Tensor:
    """Rank 8 of the same energy as the noise on it."""
    draws = np.random.RandomState(seed)
    factors = draws.standard_normal((rows, 8)) @ draws.standard_normal((8, columns)) / math.sqrt(8)
    return torch.from_numpy(factors + draws.standard_normal((rows, columns))).float()


def opt_like(rows: int, columns: int, seed: int) -> Tensor:
    """A few single entries of 50 standard deviations, and rows of very different sizes."""
    draws = np.random.RandomState(seed)
    x = draws.standard_normal((rows, columns)) * np.exp(draws.standard_normal((rows, 1)))
    x[draws.random_sample(x.shape) < 1e-4] *= 50
    return torch.from_numpy(x).float()


KINDS: dict[str, Callable[[int, int, int], Tensor]] = {
    "Student-t(4)": student,
    "1% of the columns x 20": loud_columns,
    "rows with offsets": offsets,
    "low rank plus noise": low_rank,
    "single outliers x 50": opt_like,
}


def error(weight: Tensor, **settings: Any) -> tuple[float, float]:
    """Relative squared error and bits a weight."""
    encoded = encode(weight, EncoderConfig(**settings))
    assert encoded.record is not None
    return encoded.record.relative_error**2, encoded.bits_per_weight


def theirs(weight: Tensor, rate: float, peer: Callable[[Tensor, float], tuple[Tensor, float]]) -> float:
    """The same for a peer."""
    return float((peer(weight, rate)[0] - weight).square().sum() / weight.square().sum())


def mean(values: list[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def gaussians(size: int, seeds: int) -> list[dict[str, Any]]:
    """A row a rate."""
    rows: list[dict[str, Any]] = []
    weights = [gaussian(size, size, seed) for seed in range(seeds)]
    for rate in RATES:
        bits = math.log2(rate["levels"]) if "levels" in rate else float(rate["bits"])
        row: dict[str, Any] = {"rate": bits, "bound": 4**-bits}
        for effort in ("fast", "balanced", "best"):
            found = [error(weight, effort=effort, **rate) for weight in weights]
            row[effort], row["bits"] = mean([e for e, _ in found]), found[0][1]
        if "bits" in rate:
            row["greedy"] = mean([error(w, encoder="greedy", basis="hadamard", **rate)[0] for w in weights])
            row["lloyd_max"] = mean([theirs(w, bits, lloyd_max_rotated) for w in weights])
            if bits <= 4:
                row["grid"] = mean([theirs(w, bits, higgs_like) for w in weights])
        rows.append(row)
        print(row, flush=True)
    return rows


def others(size: int) -> list[dict[str, Any]]:
    """The errors on other kinds and sizes over the Gaussian one of that size."""
    rows = []
    cases = [(kind, make, (size, size)) for kind, make in KINDS.items()]
    cases += [("Gaussian", gaussian, shape) for shape in SIZES]
    square = {bits: error(gaussian(size, size, 0), bits=bits)[0] for bits in (2, 3, 4)}
    for kind, make, shape in cases:
        row = {"kind": kind, "shape": list(shape)}
        row |= {str(bits): error(make(*shape, 1), bits=bits)[0] / square[bits] for bits in (2, 3, 4)}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    values = {"machine": machine(), "size": args.size, "seeds": args.seeds}
    values |= {"gaussian": gaussians(args.size, args.seeds), "others": others(args.size)}
    write_results(args.json, values)


if __name__ == "__main__":
    main()
