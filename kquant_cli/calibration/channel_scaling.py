"""The channel scale of layers that share an input: encode W diag(d), and divide the result by d.

With m_j = E[y_j^2] of the input and e_j column j of the error of W diag(d), the layers lose sum_j m_j |e_j|^2 / d_j^2
(the diagonal of tr(E H E^T)). An encoder whose error is white, spread evenly over the columns as a rotation spreads it,
has |e_j|^2 proportional to |W diag(d)|^2. With c_j = sum_i w_ij^2 over the rows of all the layers the loss is

    (sum_j c_j d_j^2) (sum_j m_j / d_j^2)  >=  (sum_j sqrt(c_j m_j))^2

by Cauchy and Schwarz, with equality for d_j = (m_j / c_j)^(1/4). For other encoders the family
d_j = (m_j^a / c_j^b)^(1/4) is searched: b = 0 is AWQ's (arXiv 2306.00978, section 3.2), whose scale is |y_j|^(a / 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

FLOOR: Final = 1e-4  # of the mean: no moment or energy counts as less, for no channel is dead on every text
LIMIT: Final = 1024.0  # d lies in [1 / LIMIT, LIMIT], where float16 has all its digits
PIECE: Final = 1 << 22  # entries of a weight that are squared in float64 at a time
EXPONENTS: Final = (*((step / 5, 0.0) for step in range(11)), (1.0, 1.0))  # (a, b); the first is no scale


@dataclass(frozen=True)
class Scale:
    """A channel scale `d` (in_features,) with its exponents; `loss`: over that without a scale."""

    d: Tensor
    a: float
    b: float
    loss: float


def column_energy(weights: Iterable[Tensor]) -> Tensor:
    """c_j = sum_i w_ij^2 (in_features,) float64 over the rows of all `weights` (out_features, in_features).

    Computed on the device of the weights, which is that of the result.
    """
    totals = []
    for weight in weights:
        pieces = weight.detach().split(max(1, PIECE // weight.shape[1]))
        totals += [piece.double().square().sum(0) for piece in pieces]
    return torch.stack(totals).sum(0)


def channel_scale(column_energy: Tensor, second_moments: Tensor, *, a: float = 1.0, b: float = 1.0) -> Tensor:
    """d_j = (m_j^a / c_j^b)^(1/4) with geometric mean 1, from c and m, both (in_features,).

    Moments and energies count as at least `FLOOR` of their mean (all zero: as equal); d is clamped to
    [1 / LIMIT, LIMIT]. Computed in float64 on the CPU, so that it is the same on every device; the result, float32 on
    the device of `column_energy`, is rounded to float16's numbers. Raises ValueError when c and m do not fit together,
    or hold what no sum of squares can be.
    """
    c, m = _checked(column_energy, second_moments)
    exponent = (a * _floored(m).log() - b * _floored(c).log()) / 4
    d = _centred(exponent, math.log(LIMIT)).exp().half().float()
    return d.to(column_energy.device)


def predicted_loss(column_energy: Tensor, second_moments: Tensor, d: Tensor) -> float:
    """What a white error costs with the scale `d`, over what it costs without: 1 for d = 1, less is better."""
    c, m = _checked(column_energy, second_moments)
    squares = d.detach().to("cpu", torch.float64).square()
    without = float(c.sum() * m.sum())
    return float((c * squares).sum() * (m / squares).sum()) / without if without else 1.0


def white_error_scale(column_energy: Tensor, second_moments: Tensor) -> Scale:
    """The best scale for an encoder whose error is white; none where it would not help."""
    d = channel_scale(column_energy, second_moments)
    loss = predicted_loss(column_energy, second_moments, d)
    return Scale(d, 1.0, 1.0, loss) if loss < 1 else Scale(torch.ones_like(d), 0.0, 0.0, 1.0)


def searched_scale(
    column_energy: Tensor,
    second_moments: Tensor,
    loss: Callable[[Tensor], float],
    exponents: Sequence[tuple[float, float]] = EXPONENTS,
) -> Scale:
    """The scale of the family with the least `loss(d)`; of equals the first in `exponents`.

    `loss` measures, say by encoding a sample of rows, sum_j m_j |e_j|^2 / d_j^2; what is not finite is never chosen.
    No scale is always tried, so the result is never worse by that measure.
    """
    best = Scale(torch.ones_like(column_energy, dtype=torch.float32), 0.0, 0.0, 1.0)
    least = without = loss(best.d)
    for a, b in exponents:
        if (a, b) == (0.0, 0.0):
            continue
        d = channel_scale(column_energy, second_moments, a=a, b=b)
        measured = loss(d)
        if math.isfinite(measured) and not measured >= least:
            least = measured
            best = Scale(d, a, b, measured / without if without > 0 else 1.0)
    return best


def _checked(column_energy: Tensor, second_moments: Tensor) -> tuple[Tensor, Tensor]:
    """c and m in float64 on the CPU, each over its largest, so that no product overflows."""
    if column_energy.ndim != 1 or column_energy.shape != second_moments.shape or not column_energy.numel():
        shapes = f"{tuple(column_energy.shape)} and {tuple(second_moments.shape)}"
        raise ValueError(f"expected two vectors of equal length, found shapes {shapes}")
    both = [tensor.detach().to("cpu", torch.float64) for tensor in (column_energy, second_moments)]
    if not all(torch.isfinite(tensor).all() and (tensor >= 0).all() for tensor in both):
        raise ValueError("column energies and second moments must be finite and not negative")
    c, m = (tensor / tensor.max().clamp_min(torch.finfo(torch.float64).tiny) for tensor in both)
    return c, m


def _floored(values: Tensor) -> Tensor:
    mean = values.mean()
    return values.clamp_min(FLOOR * mean) if mean > 0 else torch.ones_like(values)


def _centred(values: Tensor, limit: float) -> Tensor:
    """clamp(values - shift, -limit, limit) with the shift that gives mean 0, by bisection: it falls as shift grows."""
    low, high = values.min(), values.max()
    for _ in range(64):
        middle = (low + high) / 2
        if (values - middle).clamp(-limit, limit).mean() > 0:
            low = middle
        else:
            high = middle
    return (values - (low + high) / 2).clamp(-limit, limit)
