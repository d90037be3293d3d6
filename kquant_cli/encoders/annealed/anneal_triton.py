"""The annealing by kernels: a sweep is two of them and the two transforms, soft or hard.

Importing this module imports Triton.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed.hard_sweeps_triton import settle_fused
from kquant_cli.encoders.annealed.soft_assignment_triton import blocks, half_sweep
from kquant_cli.encoders.annealed.sweeps import Sweeps


def anneal_fused(x: Tensor, bases: CoupledBases, drive: Sweeps) -> tuple[Tensor, Tensor]:
    """The codes (rows, size), uint8, of contiguous float32 rows x (rows, size), and each sweep's sum of squares."""
    codebook = drive.codebook.to(x.device).contiguous()
    u, v, qv = (torch.zeros_like(x) for _ in range(3))
    s = bases.couple_adjoint(x)
    squares = torch.empty(len(drive.betas), blocks(x), device=x.device)
    steps = zip(drive.betas.tolist(), drive.momenta.tolist(), squares, strict=True)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton launches on the current device
        for beta, momentum, sums in steps:
            u, rest = half_sweep(x, qv, s, u, codebook, 0, beta, momentum, sums)
            s = bases.couple_adjoint(rest)
            v, extrapolated = half_sweep(x, qv, s, v, codebook, 1, beta, momentum, sums)
            qv = bases.couple(extrapolated)
        return settle_fused(x, qv, s, bases, drive.codebook, drive.moving), squares.sum(dim=1)
