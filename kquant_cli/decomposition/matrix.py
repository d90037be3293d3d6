"""Kashin decomposition of a matrix: weight = u + left v right^T + residual, with small entries in u and v.

The algorithm is the paper's (arXiv 2404.09737). With R the residual and Y = left^T R right the same residual in the
coordinates of v, one iteration is

    greedy rule:  |R|_1 > |Y|_1:  S = sign(R),  c = |R|_1 / |S|^2,  u += c S,  R -= c S,  Y = left^T R right
                  otherwise:      S = sign(Y),  c = |Y|_1 / |S|^2,  v += c S,  Y -= c S,  R = left Y right^T

Both residuals are carried (see `residual.py`), so an iteration costs a single transform; the rest is bound by memory.

On a GPU the host does not wait for the norms of every step. It guesses the sides to come, queues a batch of steps, and
lets a flag on the device set c to 0 from the first step that turns out to be a wrong guess or one too many. Then it
reads the trace of the batch and goes on from there: the result is the same as with batches of one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kquant_cli.bases import Basis
from kquant_cli.decomposition.factors import KashinFactors, check_limits, rounding, stop_below, working_precision
from kquant_cli.decomposition.residual import CarriedResidual
from kquant_cli.decomposition.step_rules import Rule, find_rule, likely_side

GPU_BATCH = 16  # the most steps queued before the host looks at their trace
GUESS_FROM = 256  # the latest steps, from which the next sides are guessed


@dataclass(frozen=True)
class Step:
    """A step that was taken: its side and size, and the norms after it (|R|_1, |Y|_1, |R|_F^2)."""

    into_v: bool
    c: float
    l1_u: float
    l1_v: float
    squared: float


@torch.no_grad()
def decompose_matrix(
    weight: Tensor,
    left: Basis,
    right: Basis,
    *,
    max_iter: int,
    tol: float,
    rule: str = "greedy",
    batch: int | None = None,
) -> KashinFactors:
    """Decompose `weight` (rows, columns) with `left` (rows, rows) and `right` (columns, columns).

    Stops when |residual|_F < tol |weight|_F, or after max_iter steps (with tol = 0: always then). Works on the weight's
    device, in float64 for float64 and in float32 for all else. At most `batch` steps are queued without waiting
    for the device (default: 1 on the CPU, 16 on a GPU); the result does not depend on it. Raises KQuantError for an
    unknown rule and for weights that are not finite, ValueError for bases that do not fit.
    """
    check_limits(max_iter, tol)
    choose = find_rule(rule)
    if weight.shape != (left.size, right.size):
        shape = tuple(weight.shape)
        raise ValueError(f"A weight of shape {shape} does not fit bases of the sizes {left.size} and {right.size}.")
    weight = working_precision(weight)
    carried = CarriedResidual(weight, left, right)
    whole = float(carried.norms[2])
    target = stop_below(tol, weight.dtype) * whole
    steps = _iterate(carried, choose, max_iter, target, batch or (GPU_BATCH if weight.is_cuda else 1))
    u, v, squared = carried.finish()
    return KashinFactors(
        u=u,
        v=v,
        residuals=(torch.tensor([step.squared for step in steps], dtype=torch.float64) / whole).sqrt(),
        coefficients=torch.tensor([step.c for step in steps], dtype=torch.float64) / float(carried.scale),
        into_v=torch.tensor([step.into_v for step in steps], dtype=torch.bool),
        converged=squared + rounding(weight.dtype) * whole < tol**2 * whole or whole == 0,
    )


def _iterate(carried: CarriedResidual, choose: Rule, max_iter: int, target: float, batch: int) -> list[Step]:
    """Step until |R|_F^2 < target, at most `max_iter` times; a matrix of zeros takes no step."""
    steps: list[Step] = []
    l1_u, l1_v, squared = carried.norms.tolist()
    ahead = min(batch, 2)
    if squared == 0:
        return steps
    while len(steps) < max_iter and squared >= target:
        count = min(ahead, max_iter - len(steps))
        known = [step.into_v for step in steps[-GUESS_FROM:]] if count > 1 else []
        sides = [*known, bool(choose(len(steps), l1_u, l1_v))]
        taken = _take_batch(carried, choose, len(steps), sides, count, target)
        steps += taken
        l1_u, l1_v, squared = taken[-1].l1_u, taken[-1].l1_v, taken[-1].squared
        ahead = min(batch, len(taken) + 1)  # a wrong guess wastes the steps behind it
    return steps


def _take_batch(
    carried: CarriedResidual, choose: Rule, done: int, sides: list[bool], count: int, target: float
) -> list[Step]:
    """Queue `count` steps, then read which of them were to be taken: at least the first, whose side ends `sides`."""
    live = torch.ones((), dtype=torch.float64, device=carried.norms.device)
    c = carried.step(sides[-1])
    rows = [torch.cat([torch.stack([live, c]), carried.norms])]
    for iteration in range(done + 1, done + count):
        sides.append(likely_side(choose, iteration, sides))
        live = live * (carried.norms[2] >= target) * (choose(iteration, *carried.norms[:2]) == sides[-1])
        c = carried.step(sides[-1], live)
        rows.append(torch.cat([torch.stack([live, c]), carried.norms]))
    table = torch.stack(rows).tolist()  # the one wait for the device
    return [Step(side, *row[1:]) for side, row in zip(sides[-count:], table, strict=True) if row[0]]
