"""K-means on the line and in the plane."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kquant_cli.codebooks.grid import stretches
from kquant_cli.codebooks.lloyd import lloyd
from kquant_cli.codebooks.nearest import check_points, nearest
from kquant_cli.threads import for_each


@dataclass(frozen=True)
class KMeansResult:
    """Centroids (k, d) in the points' dtype; inertia, the sum of squared distances to the nearest; iterations."""

    centroids: Tensor
    inertia: float
    iterations: int


@torch.no_grad()
def kmeans(points: Tensor, start: Tensor, *, max_iter: int = 300, tol: float = 5e-6) -> KMeansResult:
    """Cluster `points` (n, d), d = 1 or 2, from the centroids `start` (k, d), k up to 256, on the points' device.

    Stops when no point changes its cluster, or when the squared shift of all centroids is at most `tol` times the mean
    variance of the coordinates (scikit-learn's `tol`), or after `max_iter` iterations. An empty cluster is moved to the
    point farthest from its centroid. With fewer distinct points than centroids, some centroids stay without points and
    the inertia is 0. The same input gives the same bits on the same device. Raises ValueError for wrong shapes.
    """
    check_points(points, start)
    if not len(points):
        raise ValueError("K-means needs at least one point.")
    if points.dtype not in (torch.float32, torch.float64):
        points = points.float()
    centroids, iterations = lloyd(points, start.to(points.device, torch.float64), max_iter, tol)
    centroids = centroids.to(points.dtype)
    return KMeansResult(centroids, _inertia(points, centroids), iterations)


def _inertia(points: Tensor, centroids: Tensor) -> float:
    """The sum of squared distances of points (n, d) to their nearest centroids."""
    codes = nearest(points, centroids)
    columns = centroids.T.contiguous()

    def sum_of(block: Tensor, code: Tensor) -> Tensor:
        index, total = code.to(torch.int32), torch.zeros_like(block[:, 0])
        for axis, column in enumerate(columns):
            total += (block[:, axis] - torch.index_select(column, 0, index)).square_()
        return total.sum(dtype=torch.float64)

    return float(torch.stack(for_each(sum_of, stretches(points), stretches(codes), device=points.device)).sum())
