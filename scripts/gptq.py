"""A reference of GPTQ (OPTQ, arXiv 2210.17323), for scripts/compare_calibrated.py: groups of 128, in order of activity.

Columns are rounded one after the other, those of the largest H_jj first, and what is lost goes into those that follow:

    w_k -= (w_j - q_j) C_jk / C_jj    for k after j,    C the upper Cholesky factor of (H + damping)^-1

Scale and zero of a group of columns are those of its range in the weight as it was (static groups). Written from the
paper and what is known of its settings in use, not from anybody's code; fake-quantised weights, no kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

GROUP, DAMPING, BLOCK = 128, 0.01, 128


def gptq(weight: Tensor, h: Tensor, bits: int) -> tuple[Tensor, float]:
    """The decoded weight (rows, columns) and its bits in all, for H (columns, columns)."""
    rows, columns = weight.shape
    levels = 2**bits - 1
    groups = weight.float().split(GROUP, dim=1)
    low = torch.stack([part.amin(dim=1).clamp_max(0) for part in groups], dim=1)
    high = torch.stack([part.amax(dim=1).clamp_min(0) for part in groups], dim=1)
    scale = ((high - low) / levels).clamp_min(1e-10).half().float()
    zero = (-low / scale).round().clamp(0, levels)
    order = h.diagonal().argsort(descending=True)
    group_of = order // GROUP
    w, h = weight.float()[:, order].clone(), h.double()[order][:, order]
    dead = h.diagonal() <= 0
    h[dead, dead] = 1
    h += DAMPING * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    c = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    decoded = torch.empty_like(w)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        part, lost = w[:, begin:end].clone(), torch.empty(rows, end - begin)
        for j in range(end - begin):
            at = begin + j
            s, z = scale[:, group_of[at]], zero[:, group_of[at]]
            q = ((part[:, j] / s + z).round().clamp(0, levels) - z) * s
            decoded[:, at] = q
            lost[:, j] = (part[:, j] - q) / c[at, at]
            part[:, j:] -= lost[:, j, None] * c[at, at:end]
        w[:, end:] -= lost @ c[begin:end, end:]
    back = torch.empty_like(decoded)
    back[:, order] = decoded
    return back, bits * weight.numel() + (16 + bits) * scale.numel()


@torch.no_grad()
def input_moments(model: Any, names: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    """H = sum x x^T of the inputs of the linear layers of these names, over token ids (sequences, length)."""
    sums: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            sums[name] = x.T @ x + sums.get(name, 0)

        return hook

    for name in names:
        handles.append(model.get_submodule(name).register_forward_pre_hook(watch(name)))
    try:
        for part in ids.split(4):
            model.base_model(input_ids=part, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def encode_all(model: Any, moments: Mapping[str, Tensor], bits: int) -> float:
    """Put the decoded weights into the model; bits a weight."""
    stored = weights = 0.0
    for name, h in moments.items():
        linear = model.get_submodule(name)
        decoded, taken = gptq(linear.weight.data, h, bits)
        linear.weight.data = decoded
        stored, weights = stored + taken, weights + decoded.numel()
    return stored / weights
