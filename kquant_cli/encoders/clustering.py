"""From points to a codebook: the starts that the settings name, and the best of several."""

from __future__ import annotations

from typing import Any

import torch

from kquant_cli.codebooks import KMeansResult, grid_start, kmeans, kmeans_plus_plus
from kquant_cli.config import EncoderConfig


def cluster(points: torch.Tensor, config: EncoderConfig, peaks: torch.Tensor | None) -> KMeansResult:
    """K-means of points (n, d) into 2^bits centroids: the first start is `config.init`, further ones are k-means++."""
    limits: dict[str, Any] = {"max_iter": config.kmeans_iter, "tol": config.kmeans_tol}
    best: KMeansResult | None = None
    for restart in range(config.restarts):
        if restart or config.init == "kmeans++":
            start = kmeans_plus_plus(points, 2**config.bits, (config.seed + restart) % 2**32)
        else:
            start = grid_start(points, 2**config.bits) if peaks is None else peaks.to(points)
        result = kmeans(points, start, **limits)
        best = result if best is None or result.inertia < best.inertia else best
    assert best is not None
    return best


def signed_sums(sizes: torch.Tensor) -> torch.Tensor:
    """All 2^n sums +-c1 +-c2 ... +-cn of the sizes (n,), ascending."""
    sums = sizes.new_zeros(1)
    for size in sizes:
        sums = torch.cat([sums - size, sums + size])
    return sums.sort().values
