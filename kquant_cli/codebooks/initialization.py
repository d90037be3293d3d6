"""Where k-means starts: a uniform grid over the ranges of the points, or k-means++."""

import math

import numpy as np
import torch
from torch import Tensor

from kquant_cli.codebooks.cells import condense


def grid_start(points: Tensor, k: int) -> Tensor:
    """The centres (k, d) of a uniform grid of cells over the ranges of points (n, d).

    On the line k cells; in the plane a x b = k with a >= b as near as possible: 2^ceil(b/2) x 2^floor(b/2) for 2^b.
    The more cells go to the axis with the larger range: with as many fewer there, no iteration finds a good codebook.
    """
    low, high = points.amin(dim=0), points.amax(dim=0)
    dims = points.shape[1]
    short = next(b for b in range(math.isqrt(k), 0, -1) if k % b == 0) if dims == 2 else 1
    counts = [k // short, short][:dims]
    if dims == 2 and high[1] - low[1] > high[0] - low[0]:
        counts.reverse()
    axes = []
    for axis, count in enumerate(counts):
        middle = (torch.arange(count, dtype=points.dtype, device=points.device) + 0.5) / count
        axes.append(low[axis] * (1 - middle) + high[axis] * middle)  # no overflow, whatever the range
    return torch.cartesian_prod(*axes).view(k, points.shape[1])


def kmeans_plus_plus(points: Tensor, k: int, seed: int) -> Tensor:
    """k of the points (n, d), far from each other: a start (k, d) for k-means (Arthur and Vassilvitskii, 2007).

    This is scikit-learn's; of many points, the means of small cells are drawn, weighted. The same points and seed give
    the same start. With fewer than k points, some are drawn more than once.
    """
    from sklearn.cluster import kmeans_plusplus  # noqa: PLC0415  (a second that other encoders need not wait)

    condensed, weights = (part.cpu().numpy() for part in condense(points))
    short = max(0, k - len(condensed))
    condensed = np.resize(condensed, (len(condensed) + short, condensed.shape[1]))
    weights = np.resize(weights, len(condensed))
    centres, _ = kmeans_plusplus(condensed, k, sample_weight=weights, random_state=seed)
    return torch.from_numpy(centres).to(points.device, points.dtype)
