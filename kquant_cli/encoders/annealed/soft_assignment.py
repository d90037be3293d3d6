"""The soft assignment, the hot spot of the sweeps: averages of a codebook's points over the fields of all positions.

    w_k = exp(-beta |(t, s) - C_k|^2),    mean = sum_k values_k w_k / sum_k w_k

In torch that is a few passes over memory for every point. On a GPU a kernel does it with all that a half of a sweep has
beside the transform (soft_assignment_triton.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def average(
    t: Tensor, s: Tensor, codebook: Tensor, column: int, beta: float, momentum: float, old: Tensor
) -> tuple[Tensor, Tensor]:
    """The means of the codebook's `column` (0: u, 1: v), and the means extrapolated: mean + momentum (mean - old).

    t, s, old (rows, size) float32; codebook (K, 2).
    """
    mean = _average(t, s, codebook, column, beta)
    return mean, torch.lerp(old, mean, 1 + momentum)


def _average(t: Tensor, s: Tensor, codebook: Tensor, column: int, beta: float) -> Tensor:
    """The means alone. Exponents are taken from the largest, so that none overflows."""
    points = codebook.tolist()

    def exponent(c: float, d: float) -> Tensor:
        return torch.add(t * (2 * beta * c), s, alpha=2 * beta * d).sub_(beta * (c * c + d * d))

    most = exponent(*points[0])
    for point in points[1:]:
        torch.maximum(most, exponent(*point), out=most)
    total, weighted = torch.zeros_like(t), torch.zeros_like(t)
    for point in points:
        weight = exponent(*point).sub_(most).exp_()
        total += weight
        weighted.add_(weight, alpha=point[column])
    return weighted.div_(total)
