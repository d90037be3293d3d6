"""Lloyd's algorithm on many points, with the stops and the relocation of scikit-learn's KMeans.

An iteration adds up the cells of a grid that lie in one cluster as a whole, and looks at the points of the others only:
some in a hundred. It does what going through all points does, up to the rounding of float64.
"""

import torch
from torch import Tensor

from kquant_cli.codebooks.cells import FEW, make_cells
from kquant_cli.codebooks.grid import stretches
from kquant_cli.codebooks.nearest import nearest
from kquant_cli.codebooks.sums import sum_by_code
from kquant_cli.threads import for_each

COMPARED = 2**20  # products in memory at a time
STILL = 1e-28  # a squared shift, in variances, that is rounding: no point has changed its cluster


def lloyd(points: Tensor, centroids: Tensor, max_iter: int, tol: float) -> tuple[Tensor, int]:
    """Move `centroids` (k, d) to the means of their clusters of points (n, d) until they stay; and the iterations.

    An iteration whose squared shift is at most `tol` mean variances is the last. All sums are in float64.
    """
    centre, variance = _moments(points)
    limit = max(tol, STILL) * float(variance.mean())
    sums = _DirectSums(points, centre) if len(points) <= FEW else _CellSums(points, centre)
    centroids = centroids - centre
    for iteration in range(1, max_iter + 1):
        totals = sums.by_cluster(centroids)
        if (totals[:, 0] == 0).any():
            _relocate(points, centre, centroids, totals)
        moved = torch.where(totals[:, :1] > 0, totals[:, 1:] / totals[:, :1].clamp(min=1), centroids)
        shift = float((moved - centroids).square().sum())
        centroids = moved
        if shift <= limit:
            return centroids + centre, iteration
    return centroids + centre, max_iter


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (d,) of points (n, d), float64."""

    def mean(power: int, origins: list[float]) -> Tensor:
        def sums(block: Tensor) -> Tensor:
            columns = zip(block.T, origins, strict=True)
            return torch.stack([(x - origin).pow_(power).sum(dtype=torch.float64) for x, origin in columns])

        return torch.stack(for_each(sums, stretches(points), device=points.device)).sum(dim=0) / len(points)

    first = points[0].double()
    centre = first + mean(1, first.tolist())
    return centre, mean(2, centre.tolist())


class _DirectSums:
    """Goes through all points."""

    def __init__(self, points: Tensor, centre: Tensor):
        self.rows = _rows(points, centre)

    def by_cluster(self, centroids: Tensor) -> Tensor:
        """The number and the sum, from the centre on, of the points nearest to each centroid: (k, 1 + d)."""
        return _cluster(self.rows, centroids)


class _CellSums:
    """Goes through the cells of a grid, and through the points in those that a border between clusters cuts."""

    def __init__(self, points: Tensor, centre: Tensor):
        self.cells, self.centre = make_cells(points), centre
        number, sums = self.cells.totals[:-1, :1], self.cells.totals[:-1, 1:]
        self.values = torch.cat([number, sums - number * centre], dim=1)
        self.outside = torch.ones(1, dtype=torch.bool, device=points.device)

    def by_cluster(self, centroids: Tensor) -> Tensor:
        """As for `_DirectSums`."""
        device = self.centre.device

        def label(corners: Tensor) -> Tensor:
            parts = (corners - self.centre).split(2**14)
            return torch.cat(for_each(lambda part: _assign(part, centroids), parts, device=device))

        code = self.cells.grid.labels(label)
        cut = torch.cat([code < 0, self.outside])
        whole = sum_by_code(code.clamp(min=0), self.values * ~cut[:-1, None], len(centroids))

        def cluster(points: Tensor, cell: Tensor) -> Tensor:
            chosen = torch.index_select(cut, 0, cell).nonzero()[:, 0]
            return _cluster(_rows(points[chosen], self.centre), centroids)

        parts = for_each(cluster, stretches(self.cells.points), stretches(self.cells.cell), device=device)
        return whole + torch.stack(parts).sum(dim=0)


def _cluster(rows: Tensor, centroids: Tensor) -> Tensor:
    return sum_by_code(_assign(rows[:, 1:], centroids), rows, len(centroids))


def _rows(points: Tensor, centre: Tensor) -> Tensor:
    """(1, point - centre) for each point: (n, 1 + d) float64."""
    return torch.nn.functional.pad(points.double() - centre, (1, 0), value=1.0)


def _assign(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each point, (n,) int64: the largest p . c - |c|^2 / 2."""
    offset = centroids.square().sum(dim=1) / -2
    parts = points.split(max(1, COMPARED // len(centroids)))
    return torch.cat([torch.addmm(offset, part, centroids.T).max(dim=1).indices for part in parts])


def _relocate(points: Tensor, centre: Tensor, centroids: Tensor, totals: Tensor) -> None:
    """Give each empty cluster the point farthest from its centroid, then the next; in place in `totals`."""
    empty = (totals[:, 0] == 0).nonzero()[:, 0].tolist()
    codes = nearest(points, centroids + centre)

    def farthest(block: Tensor, code: Tensor) -> tuple[Tensor, ...]:
        rows, code = _rows(block, centre), code.to(torch.int32)
        distances = (rows[:, 1:] - torch.index_select(centroids, 0, code)).square_().sum(dim=1)
        far = distances.topk(min(len(empty), len(block)))
        return far.values, rows[far.indices], code[far.indices]

    found = for_each(farthest, stretches(points), stretches(codes), device=points.device)
    distance, rows, code = (torch.cat(parts) for parts in zip(*found, strict=True))
    far = distance.topk(min(len(empty), len(distance)))
    for cluster, squared, place in zip(empty, far.values.tolist(), far.indices.tolist(), strict=False):
        if squared > 0:
            totals[code[place]] -= rows[place]
            totals[cluster] = rows[place]
