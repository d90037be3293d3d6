"""The soft assignment as one Triton kernel: each position reads t, s and the old mean, and writes both results.

The points of the codebook stay in the cache. TRITON_INTERPRET=1 runs the kernel on a machine without a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
BLOCK = 1024


@triton.jit
def _soft(  # type: ignore[no-untyped-def]
    t_ptr,
    s_ptr,
    old_ptr,
    codebook_ptr,
    mean_ptr,
    extrapolated_ptr,
    count,
    factor,
    momentum,
    levels: tl.constexpr,
    column: tl.constexpr,
    block: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    t = tl.load(t_ptr + at, mask=inside, other=0.0) * factor
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
    tl.store(mean_ptr + at, mean, mask=inside)
    tl.store(extrapolated_ptr + at, mean + momentum * (mean - old), mask=inside)


def average_fused(
    t: Tensor, s: Tensor, codebook: Tensor, column: int, beta: float, momentum: float, old: Tensor
) -> tuple[Tensor, Tensor]:
    """As `soft.average`, for contiguous float32 tensors on one device."""
    mean, extrapolated = torch.empty_like(t), torch.empty_like(t)
    grid = (triton.cdiv(t.numel(), BLOCK),)
    tensors = (t, s, old, codebook.contiguous(), mean, extrapolated)
    options = {"levels": len(codebook), "column": column, "block": BLOCK}
    with torch.cuda.device(t.device) if t.is_cuda else nullcontext():  # Triton launches on the current device
        _soft[grid](*tensors, t.numel(), 2 * beta * LOG2_E, momentum, **options)
    return mean, extrapolated
