"""Kashin decomposition of vectors: x = u + Q v + residual, with small entries in u and v, each row of a batch alone.

The iteration of `matrix.py` with one basis (arXiv 2404.09737, "Decomposition Kashin Algorithm"): with r the residual
and y = Q^T r, a step takes c sign(r) out of r into u, or c sign(y) out of y into v. Every row has its own choice, c and
end. Rows do not meet, so they go through all iterations in blocks that stay in the cache.
"""

import torch
from torch import Tensor

from kquant_cli.bases import Basis
from kquant_cli.decomposition.factors import (
    KashinFactors,
    check_limits,
    rounding,
    stop_below,
    unit_scale,
    working_precision,
)
from kquant_cli.decomposition.step_rules import Rule, find_rule

CPU_BLOCK = 2**18  # elements that go through the iteration together
GPU_BLOCK = 2**26
GPU_LOOK = 16  # iterations between two looks at whether a row is still live, for which the host waits


@torch.no_grad()
def decompose_vector(x: Tensor, basis: Basis, *, max_iter: int, tol: float, rule: str = "greedy") -> KashinFactors:
    """Decompose each row of `x` (batch, size) with `basis` (size, size); traces are (iterations, batch).

    A row stops when |residual| < tol |row|, or after max_iter steps; a row of zeros at once. Device, precision and
    errors are those of `decompose_matrix`.
    """
    check_limits(max_iter, tol)
    choose = find_rule(rule)
    if x.dim() != 2 or x.shape[1] != basis.size:
        raise ValueError(
            f"Rows of shape {tuple(x.shape)} do not fit a basis of size {basis.size}: (batch, {basis.size})."
        )
    x = working_precision(x)
    rows = max(1, (GPU_BLOCK if x.is_cuda else CPU_BLOCK) // basis.size)
    blocks = [_decompose_rows(block, basis, choose, max_iter, tol) for block in x.split(rows)]
    longest = max(block.iterations for block in blocks)
    return KashinFactors(
        u=torch.cat([block.u for block in blocks]),
        v=torch.cat([block.v for block in blocks]),
        residuals=torch.cat([_lengthen(block.residuals, longest, repeat=True) for block in blocks], dim=1),
        coefficients=torch.cat([_lengthen(block.coefficients, longest) for block in blocks], dim=1),
        into_v=torch.cat([_lengthen(block.into_v, longest) for block in blocks], dim=1),
        converged=all(block.converged for block in blocks),
    )


def _lengthen(trace: Tensor, iterations: int, repeat: bool = False) -> Tensor:
    """Go on to `iterations` with zeros, or with the last row (a block that took no step has residuals of zero)."""
    more = trace.new_zeros(iterations - len(trace), trace.shape[1])
    return torch.cat([trace, more + trace[-1] if repeat and len(trace) else more])


def _decompose_rows(x: Tensor, basis: Basis, choose: Rule, max_iter: int, tol: float) -> KashinFactors:
    """One block of rows, x (rows, size), through all its iterations; a row is live until its residual is small."""
    scale = unit_scale(x.abs().amax(1, keepdim=True))  # (rows, 1)
    x = x * scale
    r, y, v = x.clone(), basis.adjoint(x), torch.zeros_like(x)
    whole = _squared(r)  # (rows,), as everything in the traces
    target = stop_below(tol, x.dtype) * whole
    live = (whole >= target) & (whole > 0)
    squared, sizes, into_v = [], [], []
    for iteration in range(max_iter):
        if (not x.is_cuda or iteration % GPU_LOOK == 0) and not live.any():
            break
        l1_u, l1_v = r.abs().sum(1), y.abs().sum(1)
        to_v = torch.as_tensor(choose(iteration, l1_u, l1_v), device=x.device).expand_as(live) & live
        near = torch.where(to_v[:, None], y, r)
        signs = near.sign()
        c = live * torch.where(to_v, l1_v, l1_u) / signs.abs().sum(1).clamp(min=1)
        near.addcmul_(signs, c[:, None], value=-1)
        v.addcmul_(signs, (c * to_v)[:, None])
        far = _transform_rows(basis, near, to_v, live)
        r = torch.where((to_v ^ live)[:, None], near, torch.where(to_v[:, None], far, r))
        y = torch.where(to_v[:, None], near, torch.where(live[:, None], far, y))
        squared.append(_squared(r))
        sizes.append(c)
        into_v.append(to_v)
        live = live & (squared[-1] >= target)
    taken = sum(bool(c.any()) for c in sizes)  # after the last look a GPU may have gone round for nothing
    image = basis.apply(v)
    u = x - image - r
    rest = _squared(x - image - u) + rounding(x.dtype) * whole
    none = torch.zeros(0, len(x))
    return KashinFactors(
        u=u / scale,
        v=v / scale,
        residuals=(torch.stack(squared[:taken]) / whole.clamp(min=1e-300)).sqrt().cpu() if taken else none.double(),
        coefficients=(torch.stack(sizes[:taken]) / scale[:, 0]).double().cpu() if taken else none.double(),
        into_v=torch.stack(into_v[:taken]).cpu() if taken else none.bool(),
        converged=bool(((rest < tol**2 * whole) | (whole == 0)).all()),
    )


def _transform_rows(basis: Basis, rows: Tensor, to_v: Tensor, live: Tensor) -> Tensor:
    """The rows in the other coordinates: Q y for those whose step went into v, Q^T r for the others that are live."""
    if rows.is_cuda:  # selecting rows would wait for the device
        return torch.where(to_v[:, None], basis.apply(rows), basis.adjoint(rows))
    far = torch.zeros_like(rows)
    for chosen, transform in ((to_v, basis.apply), (live & ~to_v, basis.adjoint)):
        if chosen.any():
            far[chosen] = transform(rows[chosen])
    return far


def _squared(x: Tensor) -> Tensor:
    return x.square().sum(1, dtype=torch.float64)
