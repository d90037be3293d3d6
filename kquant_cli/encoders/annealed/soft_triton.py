"""The soft assignment as one Triton kernel: every position reads t, s and the old mean, and writes mean and extrapolation.

The points of the codebook stay in the cache. TRITON_INTERPRET=1 runs the kernel on a machine without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
BLOCK = 1024


@triton.jit
def _soft(t_ptr, s_ptr, old_ptr, codebook_ptr, mean_ptr, out_ptr, count, factor, momentum,
          LEVELS: tl.constexpr, COLUMN: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < count
    t = tl.load(t_ptr + at, mask=inside, other=0.0) * factor
    s = tl.load(s_ptr + at, mask=inside, other=0.0) * factor
    most = tl.full((SIZE,), -3.0e38, tl.float32)
    for k in range(LEVELS):
        c = tl.load(codebook_ptr + 2 * k)
        d = tl.load(codebook_ptr + 2 * k + 1)
        most = tl.maximum(most, t * c + s * d - 0.5 * factor * (c * c + d * d))
    total = tl.zeros((SIZE,), tl.float32)
    weighted = tl.zeros((SIZE,), tl.float32)
    for k in range(LEVELS):
        c = tl.load(codebook_ptr + 2 * k)
        d = tl.load(codebook_ptr + 2 * k + 1)
        weight = tl.exp2(t * c + s * d - 0.5 * factor * (c * c + d * d) - most)
        total += weight
        weighted += weight * (d if COLUMN else c)
    mean = weighted / total
    old = tl.load(old_ptr + at, mask=inside, other=0.0)
    tl.store(mean_ptr + at, mean, mask=inside)
    tl.store(out_ptr + at, mean + momentum * (mean - old), mask=inside)


def average_fused(
    t: Tensor, s: Tensor, codebook: Tensor, column: int, beta: float, momentum: float, old: Tensor
) -> tuple[Tensor, Tensor]:
    """As `soft.average`, for contiguous float32 tensors on one device."""
    mean, extrapolated = torch.empty_like(t), torch.empty_like(t)
    grid = (triton.cdiv(t.numel(), BLOCK),)
    arguments = (t, s, old, codebook.contiguous(), mean, extrapolated, t.numel(), 2 * beta * LOG2_E, momentum)
    _soft[grid](*arguments, LEVELS=len(codebook), COLUMN=column, SIZE=BLOCK)
    return mean, extrapolated
