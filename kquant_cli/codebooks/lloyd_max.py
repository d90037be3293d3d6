"""The levels of the best scalar quantiser of the standard normal distribution (Lloyd 1957, Max 1960).

Each level is the mean of its interval, and the borders lie half way between levels:

    x_i = (phi(t_i) - phi(t_{i+1})) / (Phi(t_{i+1}) - Phi(t_i)),    t_i = (x_{i-1} + x_i) / 2,  t_0 = -inf, t_K = inf
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor


def lloyd_max(levels: int) -> Tensor:
    """The `levels` levels, ascending, float64 (levels,), with the least mean squared error for N(0, 1).

    Newton's method on the equations above, whose Jacobian is tridiagonal: plain fixed-point iteration, which is used
    for the first steps, would take some ten thousand for 256 levels. Raises ValueError for fewer than one level.
    """
    from scipy.linalg import solve_banded  # noqa: PLC0415 (0.2 s, which most runs need not spend)
    from scipy.special import ndtri  # noqa: PLC0415

    if levels < 1:
        raise ValueError(f"A quantiser has at least one level, not {levels}.")
    # the best levels have the density phi^(1/3): that of N(0, 3), for many levels (Panter and Dite, 1951)
    x = np.sqrt(3) * ndtri((np.arange(levels) + 0.5) / levels)
    for step in range(100):
        means, above, below = _interval_means(x)
        error = x - means
        if step < 5:
            change = error
        else:
            jacobian = np.zeros((3, levels))
            jacobian[0, 1:] = -above[:-1] / 2
            jacobian[1] = 1 - (above + below) / 2
            jacobian[2, :-1] = -below[1:] / 2
            change = solve_banded((1, 1), jacobian, error)
        x = x - change
        x = (x - x[::-1]) / 2  # rounding must not break the symmetry
        if np.abs(change).max() < 1e-13:
            break
    return torch.from_numpy(x)


@cache
def lloyd_max_error(levels: int) -> float:
    """The mean squared error of `lloyd_max`'s quantiser for N(0, 1): 1 - sum_i P_i x_i^2, x_i being interval means."""
    from scipy.special import ndtr  # noqa: PLC0415

    x = lloyd_max(levels).numpy()
    border = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    return float(1 - (np.diff(ndtr(border)) * x**2).sum())


def _interval_means(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of each interval, and its derivatives by the interval's upper and lower border."""
    from scipy.special import ndtr  # noqa: PLC0415

    border = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    density = np.exp(-np.square(border) / 2) / np.sqrt(2 * np.pi)
    # on the right the distribution function is near 1, and differences would lose digits: mirror
    right = border[:-1] > 0
    mass = np.where(right, ndtr(-border[:-1]) - ndtr(-border[1:]), ndtr(border[1:]) - ndtr(border[:-1]))
    means = (density[:-1] - density[1:]) / mass
    finite = np.where(np.isfinite(border), border, 0)
    above = density[1:] * (finite[1:] - means) / mass
    below = density[:-1] * (means - finite[:-1]) / mass
    return means, above, below
