"""Many points, and for each cell of a grid over them how many lie in it and their sum."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kquant_cli.codebooks.grid import Grid, make_grid, stretches
from kquant_cli.threads import for_each

FEW = 2**16  # so many points are not worth a grid


@dataclass(frozen=True)
class Cells:
    """Points (n, d), the cell (n,) of each, and `totals` (cells + 1, 1 + d), number and sum of the points of a cell.

    The last cell holds the points outside the grid. All sums are in float64.
    """

    points: Tensor
    grid: Grid
    cell: Tensor
    totals: Tensor


def make_cells(points: Tensor) -> Cells:
    """Sort points (n, d) into the cells of a grid."""
    # in the plane about as much work with the corners of cells as with the points in cells that a border cuts
    grid = make_grid(points, 2**13 if points.shape[1] == 1 else min(512, int((len(points) / 10) ** 0.5)))
    cell = torch.empty(len(points), dtype=torch.int32, device=points.device)

    def number(block: Tensor, out: Tensor) -> None:
        coordinates = grid.coordinates(block)
        out.copy_(grid.cells(coordinates))
        for coordinate in coordinates:
            out.masked_fill_((coordinate < 0) | (coordinate >= grid.side), grid.count)

    for_each(number, stretches(points), stretches(cell), device=points.device)
    return Cells(points, grid, cell, _sum_by_cell(points, cell, grid.count + 1))


def _sum_by_cell(points: Tensor, cell: Tensor, count: int) -> Tensor:
    """Number and sum of the points in each of `count` cells, (count, 1 + d), in an order that does not vary."""
    if points.is_cuda:
        counts = torch.bincount(cell, minlength=count)
        ordered = points[cell.sort(stable=True).indices]
        sums = [torch.segment_reduce(x.double(), "sum", lengths=counts, unsafe=True) for x in ordered.T]
        return torch.stack([counts.double(), *sums], dim=1)

    def column(weights: Tensor | None) -> Tensor:
        total = torch.zeros(count, dtype=torch.float64)
        for numbers, part in zip(stretches(cell), stretches(cell if weights is None else weights), strict=True):
            total += torch.bincount(numbers, None if weights is None else part.double(), minlength=count)
        return total

    return torch.stack(for_each(column, [None, *points.T], device=points.device), dim=1)


def condense(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n, d) as fewer points (m, d) with weights (m,): the means of the cells, and those outside; float64."""
    if len(points) <= FEW:
        return points.double(), torch.ones(len(points), dtype=torch.float64, device=points.device)
    cells = make_cells(points)
    totals = cells.totals[:-1][cells.totals[:-1, 0] > 0]
    outside = points[cells.cell == cells.grid.count].double()
    weights = torch.cat([totals[:, 0], totals.new_ones(len(outside))])
    return torch.cat([totals[:, 1:] / totals[:, :1], outside]), weights
