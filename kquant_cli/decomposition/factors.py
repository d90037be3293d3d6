"""What a Kashin decomposition returns, and what both of its forms check and prepare in the same way."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError


@dataclass(frozen=True)
class KashinFactors:
    """The two parts of a decomposed weight (or batch of vectors), and how the iteration went.

    u, v: like the input; v is in its own basis: weight = u + left v right^T + residual, or x_i = u_i + Q v_i +
    residual_i.
    residuals: (iterations,), or (iterations, batch) for vectors: |residual| / |input| after each step, float64, on the
    CPU.
    coefficients: the same shape, c of each step in the input's units: the step added c sign(residual) to u or v.
    into_v: the same shape, True where the step went into v.
    converged: the residual computed from u and v at the end is below the tolerance (for vectors: of every one).

    A vector that stops before the others repeats its last residual, with coefficient 0.
    """

    u: Tensor
    v: Tensor
    residuals: Tensor
    coefficients: Tensor
    into_v: Tensor
    converged: bool

    @property
    def iterations(self) -> int:
        """Steps taken (for vectors: by the one that took the most)."""
        return len(self.residuals)


def check_limits(max_iter: int, tol: float) -> None:
    """Refuse, with ValueError, limits under which no iteration makes sense."""
    if max_iter < 0 or not tol >= 0:
        raise ValueError(f"max_iter and tol must not be negative, but are {max_iter} and {tol}.")


def stop_below(tol: float, dtype: torch.dtype) -> float:
    """The relative squared residual to stop below: with `rounding`, it is still below tol^2, if anything can be."""
    return max(tol**2 - rounding(dtype), tol**2 / 4)


def rounding(dtype: torch.dtype) -> float:
    """What the rounding of u, v and the transform adds to a relative squared residual, at most."""
    return (2 * torch.finfo(dtype).eps) ** 2


def working_precision(x: Tensor) -> Tensor:
    """`x` itself in float32 and float64, else in float32: sums of half-precision steps would not converge."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def unit_scale(largest: Tensor) -> Tensor:
    """The powers of two that bring the largest magnitudes into [0.5, 1): exact, and no square over- or underflows."""
    if not torch.isfinite(largest).all():
        raise KQuantError("Only finite weights can be decomposed, but these hold NaN or infinity: repair them first.")
    limit = 120 if largest.dtype == torch.float32 else 1000  # the scale itself must be a normal number
    exponent = torch.frexp(largest).exponent.clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(largest), -exponent)
