"""From points to a codebook: the starts that the settings name, and the best of several."""

from __future__ import annotations

from typing import Any

import torch

from kquant_cli.codebooks import grid_start, kmeans, kmeans_plus_plus
from kquant_cli.config import EncoderConfig

SAMPLE = 2**14  # points on which starts are compared: 64 a centroid at 8 bits


def cluster(points: torch.Tensor, config: EncoderConfig, peaks: torch.Tensor | None) -> torch.Tensor:
    """The centroids (2^bits, d) that k-means finds for points (n, d).

    The first start is `config.init`, further ones are k-means++. Of several starts, each is followed on a sample, and
    the one with the smallest inertia there goes on with all points.
    """
    levels = config.level_count
    limits: dict[str, Any] = {"max_iter": config.kmeans_iter, "tol": config.kmeans_tol}
    sample = points[:: len(points) // SAMPLE | 1]  # an odd stride: in step with no power of two
    starts = []
    for restart in range(config.restarts):
        if restart or config.init == "kmeans++":
            starts.append(kmeans_plus_plus(sample, levels, (config.seed + restart) % 2**32))
        else:
            starts.append(grid_start(points, levels) if peaks is None else peaks.to(points))
    if len(starts) > 1:
        starts = [min((kmeans(sample, start, **limits) for start in starts), key=lambda r: r.inertia).centroids]
    return kmeans(points, starts[0], **limits).centroids


def root_mean_square(weight: torch.Tensor, *, by_row: bool = False) -> torch.Tensor:
    """sqrt(mean w^2) of all entries (1, 1), or of each row (rows, 1); no square over- or underflows."""
    dims = (1,) if by_row else (0, 1)
    largest = weight.abs().amax(dim=dims, keepdim=True)
    units = weight / torch.where(largest > 0, largest, 1)
    return units.square_().mean(dim=dims, keepdim=True).sqrt() * largest


def signed_sums(sizes: torch.Tensor) -> torch.Tensor:
    """All 2^n sums +-c1 +-c2 ... +-cn of the sizes (n,), ascending."""
    sums = sizes.new_zeros(1)
    for size in sizes:
        sums = torch.cat([sums - size, sums + size])
    return sums.sort().values
