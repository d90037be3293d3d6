"""The hard sweeps that end the annealing: positions take their nearest point, a share of them at a time.

    codes = nearest(t, s) at the positions that move,    t = x - Q v,    s = Q^T (x - u)

Each row keeps the codes with the least |x - u - Q v|^2 that it has seen. In torch that is a few passes over memory for
every point of the codebook; on a GPU two kernels a sweep beside the transforms (hard_sweeps_triton.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases


def settle(x: Tensor, t: Tensor, s: Tensor, bases: CoupledBases, codebook: Tensor, moving: Tensor) -> Tensor:
    """The codes (rows, size), uint8, of rows x (rows, size) with the fields t and s, all float32.

    Every position takes its nearest point; then each sweep moves those of `moving` (sweeps, size), bool. `codebook`
    (K, 2) and `moving` are best on the host.
    """
    points = codebook.to(x.device)
    codes = nearest_codes(t, s, codebook)
    t, s, least = _fields(x, codes, bases, points)
    best = codes
    for moved in moving.to(x.device):
        codes = torch.where(moved, nearest_codes(t, s, codebook), codes)
        t, s, errors = _fields(x, codes, bases, points)
        best = torch.where((errors < least).unsqueeze(1), codes, best)
        least = torch.minimum(errors, least)
    return best.to(torch.uint8)


def _fields(x: Tensor, codes: Tensor, bases: CoupledBases, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t and s of hard codes, and each row's squared error (rows,)."""
    u, v = codebook[:, 0][codes], codebook[:, 1][codes]
    t = x - bases.couple(v)
    return t, bases.couple_adjoint(x - u), (t - u).square().sum(dim=1)


def nearest_codes(t: Tensor, s: Tensor, codebook: Tensor) -> Tensor:
    """The index (rows, size), int64, of the point nearest to each (t, s); of equals the first.

    The codebook is best on the host: its numbers are read one by one.
    """
    best = torch.full_like(t, -torch.inf)
    codes = torch.zeros_like(t, dtype=torch.int64)
    for k, (c, d) in enumerate(codebook.tolist()):
        value = t * c + s * d - (c * c + d * d) / 2
        better = value > best
        best = torch.where(better, value, best)
        codes = torch.where(better, k, codes)
    return codes
