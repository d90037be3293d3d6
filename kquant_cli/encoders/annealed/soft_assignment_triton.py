"""A half of a soft sweep as one Triton kernel: all of it but the transform.

    t = x - Q v,   mean = mean(t, s) of u or v,   new = mean + momentum (mean - old)
    u:  x - new, which the transform takes, and the sum of (t - new)^2 over each block of positions, for the trace
    v:  new, which the transform takes

Each position is read once, and the points of the codebook stay in the cache. TRITON_INTERPRET=1 runs the kernel on a
machine without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
BLOCK = 1024


@triton.jit
def _soft(  # type: ignore[no-untyped-def]
    x_ptr,
    qv_ptr,
    s_ptr,
    old_ptr,
    codebook_ptr,
    mean_ptr,
    out_ptr,
    squares_ptr,
    count,
    factor,
    momentum,
    levels: tl.constexpr,
    column: tl.constexpr,
    block: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    field = x - tl.load(qv_ptr + at, mask=inside, other=0.0)
    t = field * factor
    s = tl.load(s_ptr + at, mask=inside, other=0.0) * factor
    most = tl.full((block,), -3.0e38, tl.float32)
    for k in range(levels):
        c = tl.load(codebook_ptr + 2 * k)
        d = tl.load(codebook_ptr + 2 * k + 1)
        most = tl.maximum(most, t * c + s * d - 0.5 * factor * (c * c + d * d))
    total = tl.zeros((block,), tl.float32)
    weighted = tl.zeros((block,), tl.float32)
    for k in range(levels):
        c = tl.load(codebook_ptr + 2 * k)
        d = tl.load(codebook_ptr + 2 * k + 1)
        weight = tl.exp2(t * c + s * d - 0.5 * factor * (c * c + d * d) - most)
        total += weight
        weighted += weight * (d if column else c)
    mean = weighted / total
    old = tl.load(old_ptr + at, mask=inside, other=0.0)
    new = mean + momentum * (mean - old)
    tl.store(mean_ptr + at, mean, mask=inside)
    if column:
        tl.store(out_ptr + at, new, mask=inside)
    else:
        tl.store(out_ptr + at, x - new, mask=inside)
        error = tl.where(inside, field - new, 0.0)
        tl.store(squares_ptr + tl.program_id(0), tl.sum(error * error, axis=0))


def blocks(x: Tensor) -> int:
    """How many sums of squares `half_sweep` gives for x."""
    return triton.cdiv(x.numel(), BLOCK)


def half_sweep(
    x: Tensor,
    qv: Tensor,
    s: Tensor,
    old: Tensor,
    codebook: Tensor,
    column: int,
    beta: float,
    momentum: float,
    squares: Tensor,
) -> tuple[Tensor, Tensor]:
    """The means of the codebook's `column` (0: u, 1: v) and what the transform takes: x - new for u, new for v.

    x, qv, s, old (rows, size) and codebook (K, 2), contiguous float32 on one device, the current one. For u the sums of
    squares of each block go to `squares` (blocks,).
    """
    mean, out = torch.empty_like(x), torch.empty_like(x)
    tensors = (x, qv, s, old, codebook, mean, out, squares)
    options = {"levels": len(codebook), "column": column, "block": BLOCK}
    _soft[(blocks(x),)](*tensors, x.numel(), 2 * beta * LOG2_E, momentum, **options)
    return mean, out
