"""Kashin decomposition of vectors: x = u + Q v + residual, with small entries in u and v, each row of a batch alone.

The iteration of `matrix.py` with one basis (arXiv 2404.09737, "Decomposition Kashin Algorithm"): with r the residual
and y = Q^T r, a step takes c sign(r) out of r into u, or c sign(y) out of y into v. Every row has its own choice, c and
end. Rows do not meet, so they go through all iterations in blocks that stay in the cache.
"""

import torch
from torch import Tensor

from kquant_cli.bases import Basis
from kquant_cli.decomposition.factors import REFRESH_EVERY, KashinFactors, check_limits, unit_scale, working_precision
from kquant_cli.decomposition.rules import Rule, find_rule

CPU_BLOCK = 2**18  # elements that go through the iteration together
GPU_BLOCK = 2**26
GPU_LOOK = 16  # iterations between two looks at whether a row still runs


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
    """One block of rows, x (rows, size), through all its iterations."""
    rows = _Rows(x, basis, tol)
    squared, c, into_v = [], [], []  # of (rows,) each
    look = GPU_LOOK if x.is_cuda else 1  # a GPU waits for the host only then
    for iteration in range(max_iter):
        if iteration % look == 0 and bool(rows.settled.all()):
            break
        step = rows.step(choose, iteration)
        squared.append(rows.squared)
        c.append(step[0])
        into_v.append(step[1])
        if (iteration + 1) % REFRESH_EVERY == 0:
            rows.refresh(~rows.settled)
        elif (iteration + 1) % look == 0:
            rows.refresh(~rows.settled & ~rows.live)
    rows.refresh(~rows.settled)
    taken = int(sum(bool(row.any()) for row in c))  # after the last look a GPU may have gone round for nothing
    none = x.new_zeros(0, len(x))
    return KashinFactors(
        u=rows.u / rows.scale,
        v=rows.v / rows.scale,
        residuals=(torch.stack(squared[:taken]) / rows.whole.clamp(min=1e-300)).sqrt() if taken else none,
        coefficients=torch.stack(c[:taken]) / rows.scale[:, 0] if taken else none,
        into_v=torch.stack(into_v[:taken]) if taken else none.bool(),
        converged=bool(rows.settled.all()),
    )


class _Rows:
    """The state of a block: per row, live until its carried residual is small, settled once the true one is."""

    def __init__(self, x: Tensor, basis: Basis, tol: float):
        self.basis = basis
        self.scale = unit_scale(x.abs().amax(1, keepdim=True))  # (rows, 1)
        self.x = x * self.scale
        self.u, self.v = torch.zeros_like(x), torch.zeros_like(x)
        self.r, self.y = self.x.clone(), basis.adjoint(self.x).clone()
        self.squared = self.whole = _squared(self.r)  # (rows,) each from here on
        self.target = tol**2 * self.whole
        self.settled = (self.whole < self.target) | (self.whole == 0)
        self.live = ~self.settled

    def step(self, choose: Rule, iteration: int) -> tuple[Tensor, Tensor]:
        """A sign step of every live row; returns its c (0 for the others) and whether it went into v."""
        l1_u, l1_v = self.r.abs().sum(1), self.y.abs().sum(1)
        into_v = torch.as_tensor(choose(iteration, l1_u, l1_v), device=l1_u.device).expand_as(self.live) & self.live
        signs = torch.where(into_v[:, None], self.y, self.r).sign_()
        image = self._image(signs, into_v)
        c = self.live * torch.where(into_v, l1_v, l1_u) / signs.abs().sum(1).clamp(min=1)
        self.u.addcmul_(signs, (c * ~into_v)[:, None])
        self.v.addcmul_(signs, (c * into_v)[:, None])
        self.r.addcmul_(torch.where(into_v[:, None], image, signs), c[:, None], value=-1)
        self.y.addcmul_(torch.where(into_v[:, None], signs, image), c[:, None], value=-1)
        self.squared = _squared(self.r)
        self.live = self.live & (self.squared >= self.target)
        return c, into_v

    def refresh(self, chosen: Tensor) -> None:
        """Compute r, y and |r|^2 of the chosen rows from x, u and v, without rounding errors; settle or revive them."""
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            self.r[rows] = self.x[rows] - self.u[rows] - self.basis.apply(self.v[rows])
            self.y[rows] = self.basis.adjoint(self.r[rows])
            self.squared[rows] = _squared(self.r[rows])
            self.settled[rows] = self.squared[rows] < self.target[rows]
            self.live[rows] = ~self.settled[rows]

    def _image(self, signs: Tensor, into_v: Tensor) -> Tensor:
        """The signs in the other coordinates: Q s for the rows that go into v, Q^T s for the others."""
        if signs.is_cuda:  # selecting rows would wait for the device
            return torch.where(into_v[:, None], self.basis.apply(signs), self.basis.adjoint(signs))
        image = torch.zeros_like(signs)
        for chosen, transform in ((into_v, self.basis.apply), (self.live & ~into_v, self.basis.adjoint)):
            if chosen.any():
                image[chosen] = transform(signs[chosen])
        return image


def _squared(x: Tensor) -> Tensor:
    return x.square().sum(1, dtype=torch.float64)
