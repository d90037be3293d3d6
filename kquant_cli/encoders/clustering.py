"""From points to a codebook by k-means: the starts that the settings name, and the best of several."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from kquant_cli.codebooks import grid_start, kmeans, kmeans_plus_plus
from kquant_cli.encoders.encoder import EncoderSettings
from kquant_cli.setting_types import Tolerance

SAMPLE = 2**14  # points on which starts are compared: 64 a centroid at 8 bits


class ClusteringSettings(EncoderSettings):
    """Settings of the encoders whose codebook is found by k-means."""

    init: Literal["grid", "kmeans++", "peaks"] = Field("grid", description="the first start of k-means")
    restarts: int = Field(
        5, ge=1, description="starts of k-means, compared on a sample; those after the first are k-means++"
    )
    kmeans_iter: int = Field(300, ge=0, description="most iterations of k-means")
    kmeans_tol: Tolerance = Field(5e-6, description="relative movement of the centroids at which k-means stops")


def refusal_of_peaks(levels: int, settings: ClusteringSettings) -> str | None:
    """Why the closed-form start cannot have so many levels; None where it can, or is not the start."""
    if settings.init == "peaks" and levels & (levels - 1):
        return (
            f"`init: peaks` cannot have {levels} levels, expected a power of two, since peaks are sums of signed steps"
        )
    return None


def cluster(
    points: torch.Tensor, levels: int, settings: ClusteringSettings, peaks: torch.Tensor | None
) -> torch.Tensor:
    """The centroids (levels, d) that k-means finds for points (n, d).

    The first start is `settings.init`, further ones are k-means++. Of several starts, each is followed on a sample, and
    the one with the smallest inertia there goes on with all points.
    """
    limits: dict[str, Any] = {"max_iter": settings.kmeans_iter, "tol": settings.kmeans_tol}
    sample = points[:: len(points) // SAMPLE | 1]  # an odd stride: in step with no power of two
    starts = []
    for restart in range(settings.restarts):
        if restart or settings.init == "kmeans++":
            starts.append(kmeans_plus_plus(sample, levels, (settings.seed + restart) % 2**32))
        else:
            starts.append(grid_start(points, levels) if peaks is None else peaks.to(points))
    if len(starts) > 1:
        starts = [min((kmeans(sample, start, **limits) for start in starts), key=lambda r: r.inertia).centroids]
    return kmeans(points, starts[0], **limits).centroids


def signed_sums(sizes: torch.Tensor) -> torch.Tensor:
    """All 2^n sums +-c1 +-c2 ... +-cn of the sizes (n,), ascending."""
    sums = sizes.new_zeros(1)
    for size in sizes:
        sums = torch.cat([sums - size, sums + size])
    return sums.sort().values
