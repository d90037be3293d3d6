"""The hard sweeps as two Triton kernels: one moves positions to their nearest points, one keeps each row's best codes.

    move:   codes = argmax_k  c_k t + d_k s - (c_k^2 + d_k^2) / 2  where positions move,  t = x - Q v;  x - u and v
    keep:   a row's codes, where |(x - u) - Q v|^2 is less than the least so far

A sweep is these two and the two transforms of the bases. TRITON_INTERPRET=1 runs the kernels on a machine without a
GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kquant_cli.bases import CoupledBases

BLOCK = 1024


@triton.jit
def _move(  # type: ignore[no-untyped-def]
    x_ptr,
    qv_ptr,
    s_ptr,
    codes_ptr,
    moving_ptr,
    points_ptr,
    rest_ptr,
    v_ptr,
    count,
    size,
    levels: tl.constexpr,
    block: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    t = x - tl.load(qv_ptr + at, mask=inside, other=0.0)
    s = tl.load(s_ptr + at, mask=inside, other=0.0)
    best = tl.full((block,), float("-inf"), tl.float32)
    nearest = tl.zeros((block,), tl.int32)
    for k in range(levels):
        c = tl.load(points_ptr + 3 * k)
        d = tl.load(points_ptr + 3 * k + 1)
        value = t * c + s * d - tl.load(points_ptr + 3 * k + 2)
        better = value > best
        best = tl.where(better, value, best)
        nearest = tl.where(better, k, nearest)
    moved = tl.load(moving_ptr + at % size, mask=inside, other=0) != 0
    old = tl.load(codes_ptr + at, mask=inside, other=0).to(tl.int32)
    codes = tl.where(moved, nearest, old)
    u = tl.load(points_ptr + 3 * codes, mask=inside, other=0.0)
    v = tl.load(points_ptr + 3 * codes + 1, mask=inside, other=0.0)
    tl.store(codes_ptr + at, codes.to(tl.uint8), mask=inside)
    tl.store(rest_ptr + at, x - u, mask=inside)
    tl.store(v_ptr + at, v, mask=inside)


@triton.jit
def _keep(rest_ptr, qv_ptr, codes_ptr, best_ptr, least_ptr, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((block,), tl.float32)
    for begin in range(0, size, block):
        column = begin + tl.arange(0, block)
        at = row * size + column
        inside = column < size
        difference = tl.load(rest_ptr + at, mask=inside, other=0.0) - tl.load(qv_ptr + at, mask=inside, other=0.0)
        squares += difference * difference
    error = tl.sum(squares, axis=0)
    if error < tl.load(least_ptr + row):
        tl.store(least_ptr + row, error)
        for begin in range(0, size, block):
            column = begin + tl.arange(0, block)
            at = row * size + column
            inside = column < size
            tl.store(best_ptr + at, tl.load(codes_ptr + at, mask=inside, other=0), mask=inside)


def move(x: Tensor, qv: Tensor, s: Tensor, codes: Tensor, moving: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Write the nearest points' codes where `moving` (size,), uint8, is not 0; x - u and v (rows, size) of the result.

    x, qv, s (rows, size) float32, codes (rows, size) uint8, all contiguous on one device; points: `with_offsets`.
    """
    rest, v = torch.empty_like(x), torch.empty_like(x)
    tensors = (x, qv, s, codes, moving, points, rest, v)
    _move[(triton.cdiv(x.numel(), BLOCK),)](*tensors, x.numel(), x.shape[1], levels=len(points), block=BLOCK)
    return rest, v


def keep(rest: Tensor, qv: Tensor, codes: Tensor, best: Tensor, least: Tensor) -> None:
    """Write the codes of rows of less |rest - qv|^2 than `least` (rows,) to `best`, and that error to `least`."""
    _keep[(len(rest),)](rest, qv, codes, best, least, rest.shape[1], block=BLOCK)


def with_offsets(codebook: Tensor) -> Tensor:
    """(c, d, (c^2 + d^2) / 2) of each point (K, 3), float32, for a codebook (K, 2)."""
    wide = codebook.double()
    return torch.cat([wide, wide.square().sum(dim=1, keepdim=True) / 2], dim=1).float()


def settle_fused(x: Tensor, qv: Tensor, s: Tensor, bases: CoupledBases, codebook: Tensor, moving: Tensor) -> Tensor:
    """As `hard_sweeps.settle` with t = x - qv, for contiguous float32 tensors on one device, the current one."""
    points = with_offsets(codebook).to(x.device)
    everywhere = torch.ones(1, x.shape[1], dtype=torch.uint8)
    codes, best = (torch.zeros(x.shape, dtype=torch.uint8, device=x.device) for _ in range(2))
    least = torch.full((len(x),), torch.inf, device=x.device)
    for moved in torch.cat([everywhere, moving.to(torch.uint8)]).to(x.device):
        rest, v = move(x, qv, s, codes, moved, points)
        qv = bases.couple(v)
        s = bases.couple_adjoint(rest)
        keep(rest, qv, codes, best, least)
    return best
