"""The nearest centroid of every point, exactly.

A table over a fine grid (see `grid`) answers for most points with one look; the others, in cells that a border between
centroids cuts, or outside the grid, are compared with every centroid.
"""

import torch
from torch import Tensor

from kquant_cli.codebooks.grid import Grid, make_grid, stretches
from kquant_cli.threads import for_each

FEW = 2**15  # points that are not worth a table
COMPARED = 2**18  # distances in memory at a time
MARGIN = 1e-3  # of a cell: what rounding can move a point by when its cell is computed, and much more


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index (n,) uint8 of the nearest of `centroids` (k, d) for each of `points` (n, d), d = 1 or 2, k up to 256.

    Distances are those of float64; a tie goes to the lower index. Raises ValueError for other shapes.
    """
    check_points(points, centroids)
    if not len(points):
        return torch.empty(0, dtype=torch.uint8, device=points.device)
    if points.dtype not in (torch.float32, torch.float64):
        points = points.float()
    distinct, index = _distinct(centroids.to(points.device, torch.float64))
    if len(points) <= FEW or len(distinct) == 1:
        return index[_compare(points, distinct)]
    return _look_up(points, distinct, index)


def check_points(points: Tensor, centroids: Tensor) -> None:
    """Refuse shapes with ValueError."""
    if points.dim() != 2 or points.shape[1] not in (1, 2):
        raise ValueError(f"Points must have the shape (n, 1) or (n, 2), not {tuple(points.shape)}.")
    if centroids.dim() != 2 or centroids.shape[1] != points.shape[1] or not 1 <= len(centroids) <= 256:
        raise ValueError(f"Centroids must be 1 to 256 points of the points' dimension, not {tuple(centroids.shape)}.")


def _distinct(centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows in the order of their first occurrence, and the indices (uint8) of these."""
    equal = (centroids[:, None] == centroids).all(dim=2)  # (k, k)
    first = equal.to(torch.uint8).argmax(dim=1) == torch.arange(len(centroids), device=centroids.device)
    return centroids[first], first.nonzero()[:, 0].to(torch.uint8)


def _squares(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances (n, k) in float64; without cancellation, so that ties are ties."""
    total = torch.zeros((), dtype=torch.float64, device=points.device)
    for axis in range(points.shape[1]):
        total = total + (points[:, axis, None].double() - centroids[:, axis]).square_()
    return total


def _compare(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid (n,) int64, by all distances, a limited number at a time."""
    parts = points.split(max(1, COMPARED // len(centroids)))
    return torch.cat([_squares(part, centroids).argmin(dim=1) for part in parts])


def _look_up(points: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    """`nearest` for many points; `centroids` are distinct, `index` holds their codes."""
    side = 2**13 if points.shape[1] == 1 else min(512, int((len(points) / 10) ** 0.5))
    grid = make_grid(points, side)
    table = _make_table(grid, centroids, index)
    codes = torch.empty(len(points), dtype=torch.uint8, device=points.device)

    def look_up(block: Tensor, out: Tensor) -> None:
        found = torch.index_select(table, 0, grid.cells(grid.coordinates(block)))
        out.copy_(found)
        undecided = (found < 0).nonzero()[:, 0]
        out[undecided] = index[_compare(block[undecided], centroids)]

    for_each(look_up, stretches(points), stretches(codes), device=points.device)
    return codes


def _make_table(grid: Grid, centroids: Tensor, index: Tensor) -> Tensor:
    """The code of each cell, int16, or -1. So are the cells at the rim: they also get the points outside."""
    # |p - c_j|^2 - |p - c_i|^2 is affine in p with slope 2 |c_j - c_i|: above this margin at all corners of a cell, it
    # is positive in all of the cell, and as far around it as rounding reaches
    reach = MARGIN * (1 / grid.density.double()).norm()
    margins = 2 * reach * (centroids[:, None] - centroids).norm(dim=2)  # (k, k)

    def label(corners: Tensor) -> Tensor:
        squares = _squares(corners, centroids)
        best, code = squares.min(dim=1)
        rivals = (squares - best[:, None] <= margins[code]).sum(dim=1)
        return torch.where(rivals == 1, code, -1)

    def label_all(corners: Tensor) -> Tensor:
        parts = corners.split(max(1, COMPARED // len(centroids)))
        return torch.cat(for_each(label, parts, device=corners.device))

    decided = grid.labels(label_all).view([grid.side] * centroids.shape[1])
    for axis in range(decided.dim()):
        decided.narrow(axis, 0, 1).fill_(-1)
        decided.narrow(axis, grid.side - 1, 1).fill_(-1)
    decided = decided.flatten()
    return torch.where(decided < 0, -1, index.to(torch.int16)[decided.clamp(min=0)]).to(torch.int16)
