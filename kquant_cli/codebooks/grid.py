"""A grid of equal cells over the bulk of many points, on the line or in the plane: what the points of a cell share.

The points nearest to one centroid form a convex set (a Voronoi cell). So where the four corners of a grid cell (on the
line: its two ends) have the same nearest centroid, so have all points in it, and need not be looked at one by one. The
corners are looked at in two steps: those of blocks of 8 x 8 cells, then all of the blocks whose corners differ.

The grid's window leaves out the outermost points (one in a thousand at each end of each axis, as seen on a sample), so
that a few outliers do not make all cells coarse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_STRETCH, GPU_STRETCH = 2**17, 2**24  # points that are visited together: on a CPU they stay in the cache
FINE = 8  # cells along each axis of a block of cells
SAMPLE = 2**16
LEFT_OUT = 1e-3


@dataclass(frozen=True)
class Grid:
    """`side` cells along each axis, a multiple of 8, from `low` (d,) on, `density` (d,) cells a unit of length."""

    low: Tensor
    density: Tensor
    side: int

    @property
    def count(self) -> int:
        """The number of cells."""
        return self.side ** len(self.low)

    def coordinates(self, points: Tensor) -> list[Tensor]:
        """Where points (n, d) lie, in cells from `low`: one (n,) for each axis, which is faster than (n, d)."""
        return [(points[:, axis] - self.low[axis]) * self.density[axis] for axis in range(points.shape[1])]

    def cells(self, coordinates: list[Tensor]) -> Tensor:
        """The number (n,) int32 of the cell at these coordinates, axis 0 outermost; the nearest one, if outside."""
        first, *others = (coordinate.clamp(0, self.side - 1).to(torch.int32) for coordinate in coordinates)
        for along in others:
            first.mul_(self.side).add_(along)
        return first

    def labels(self, label: Callable[[Tensor], Tensor]) -> Tensor:
        """The label (count,) that all corners of a cell have, or -1; `label` gives those (m,) of corners (m, d)."""
        dims, blocks = len(self.low), self.side // FINE
        device = self.low.device
        lines = torch.arange(blocks + 1, device=device) * FINE
        corner = label(self._places(_product(lines, dims))).view([1] + [blocks + 1] * dims)
        labels = _agreement(corner).view([blocks, 1] * dims).repeat([1, FINE] * dims)  # (blocks, 8, blocks, 8)
        differ = (_agreement(corner)[0] < 0).nonzero()  # (m, d)
        if len(differ):
            corners = differ[:, None] * FINE + _product(torch.arange(FINE + 1, device=device), dims)  # (m, 9^d, d)
            fine = label(self._places(corners.flatten(0, 1))).view([-1] + [FINE + 1] * dims)
            by_block = labels.permute(*range(0, 2 * dims, 2), *range(1, 2 * dims, 2))  # (blocks, blocks, 8, 8), a view
            by_block[differ.unbind(dim=1)] = _agreement(fine)
        return labels.flatten()

    def _places(self, corners: Tensor) -> Tensor:
        """Float64 points (m, d) at the crossings (m, d) of the grid's lines."""
        return self.low.double() + corners / self.density.double()


def make_grid(points: Tensor, side: int) -> Grid:
    """The grid over the bulk of points (n, d), of about `side` cells along each axis."""
    stride = len(points) // SAMPLE | 1  # odd: in step with no power of two, as the width of a matrix may be
    sample = points[::stride].sort(dim=0).values
    left_out = int(LEFT_OUT * len(sample))
    low, high = sample[left_out], sample[-1 - left_out]
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    limits, side = torch.finfo(points.dtype), max(2, round(side / FINE)) * FINE
    width = torch.maximum(high - low, limits.eps * torch.maximum(low.abs(), high.abs()))
    return Grid(low, side / width.clamp(min=side * limits.tiny), side)


def stretches(points: Tensor) -> Iterator[Tensor]:
    """Points (n, ...) in stretches that are visited together."""
    return iter(points.split(GPU_STRETCH if points.is_cuda else CPU_STRETCH))


def _product(line: Tensor, dims: int) -> Tensor:
    """All points (len(line)^dims, dims) with coordinates on `line`."""
    return torch.cartesian_prod(*[line] * dims).view(-1, dims)


def _agreement(corners: Tensor) -> Tensor:
    """What the corners of each cell have in common, or -1: from (m, s + 1, ...) to (m, s, ...)."""
    agreed = corners
    for axis in range(1, corners.dim()):
        side = corners.shape[axis] - 1
        first, second = agreed.narrow(axis, 0, side), agreed.narrow(axis, 1, side)
        agreed = torch.where(first == second, first, -1)
    return agreed
