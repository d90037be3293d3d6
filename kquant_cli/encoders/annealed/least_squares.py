"""Least squares for what is linear in the reconstruction, once the codes are known: the codebook, then the scales."""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.codebooks import sum_by_code

ROUNDS = 4  # u and v are nearly orthogonal, so that a few rounds of the alternation reach the joint optimum


def refit_codebook(x: Tensor, codes: Tensor, bases: CoupledBases, codebook: Tensor) -> Tensor:
    """The codebook (K, 2), float32, with the least |x - Cu[codes] - Q Cv[codes]|^2 for rows x (rows, size) and codes.

    One column at a time, the other held: c_k is the mean of t = x - Q v over the positions with code k, and d_k that of
    s = Q^T (x - u). Points that no position has stay where they are.
    """
    chosen = codes.long()
    u, v = codebook.double().to(x.device).unbind(dim=1)
    for _ in range(ROUNDS):
        u = _means(x - bases.couple(v.float()[chosen]), chosen, u)
        v = _means(bases.couple_adjoint(x - u.float()[chosen]), chosen, v)
    return torch.stack([u, v], dim=1).float()


def _means(field: Tensor, codes: Tensor, old: Tensor) -> Tensor:
    """The mean of the field over the positions with each code (K,), float64; `old` where there are none."""
    values = torch.stack([field.flatten().double(), torch.ones_like(field, dtype=torch.float64).flatten()], dim=1)
    sums, counts = sum_by_code(codes.flatten(), values, len(old)).unbind(dim=1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), old)


def fit_scales(x: Tensor, decoded: Tensor) -> Tensor:
    """The factor (rows,) for each row of `decoded` (rows, size) with the least |x - factor decoded|^2; 0 for zeros."""
    power = decoded.square().sum(dim=1)
    return torch.where(power > 0, (x * decoded).sum(dim=1) / torch.where(power > 0, power, 1), 0)
