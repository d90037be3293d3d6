"""The size of a weight: what it is divided by before it is encoded."""

from __future__ import annotations

import torch

from kquant_cli.threads import alone


def root_mean_square(weight: torch.Tensor, *, by_row: bool = False) -> torch.Tensor:
    """sqrt(mean w^2) of all entries (1, 1), or of each row (rows, 1); no square over- or underflows."""
    dims = (1,) if by_row else (0, 1)
    largest = weight.abs().amax(dim=dims, keepdim=True)
    units = weight / torch.where(largest > 0, largest, 1)
    mean: torch.Tensor = alone(lambda: units.square_().mean(dim=dims, keepdim=True), device=weight.device)
    return mean.sqrt() * largest
