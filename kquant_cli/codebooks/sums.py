"""Sums over what has the same code."""

import torch
from torch import Tensor


def sum_by_code(codes: Tensor, values: Tensor, k: int) -> Tensor:
    """Sums (k, c) of the rows of values (n, c) with the same code; without atomic additions, whose order would vary."""
    if not values.is_cuda:
        return torch.stack([torch.bincount(codes, column, minlength=k) for column in values.T], dim=1)
    total, names = values.new_zeros(k, values.shape[1]), torch.arange(k, device=codes.device)
    rows = max(1, 2**26 // k)
    for part, block in zip(codes.split(rows), values.split(rows), strict=True):
        total += (part == names[:, None]).to(values.dtype) @ block
    return total
