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

    Each next one is drawn with a probability proportional to its squared distance from those before, the best of
    2 + log k draws (as in scikit-learn). Of many points it is the means of small cells that are drawn, weighted. The
    same points and seed give the same start; it is computed on the CPU.
    """
    condensed, weights = (part.cpu().numpy() for part in condense(points))
    random = np.random.RandomState(seed)
    trials = 2 + int(math.log(k))

    def draw(mass: np.ndarray, count: int) -> np.ndarray:
        heap = np.cumsum(mass)
        return np.minimum(np.searchsorted(heap, random.random_sample(count) * heap[-1], side="right"), len(mass) - 1)

    chosen = [int(draw(weights, 1)[0])]
    distance = np.square(condensed - condensed[chosen[0]]).sum(axis=1)
    while len(chosen) < k:
        candidates = draw(weights * distance, trials)
        distances = [np.minimum(distance, np.square(condensed - condensed[c]).sum(axis=1)) for c in candidates]
        best = int(np.argmin([weights @ d for d in distances]))
        chosen.append(int(candidates[best]))
        distance = distances[best]
    return torch.from_numpy(condensed[chosen]).to(points.device, points.dtype)
