"""Noise that stands for the error of an encoder that rotates the weight's inputs.

Rotated encoders leave an error that is white within a row, of an energy in proportion to the row's (docs/method.md);
where they encode W diag(d) and divide by d afterwards, it is so before the division:

    E_ij = N_ij sqrt(eps / n sum_k (W_ik d_k)^2) / d_j ,    N_ij independent and standard normal, n = in_features
"""

from __future__ import annotations

from hashlib import sha256

import torch


def noise(weight: torch.Tensor, eps: float, channel_scale: torch.Tensor | None, label: str) -> torch.Tensor:
    """An error E (out_features, in_features) of the weight's shape, dtype and device.

    `eps` is its relative squared error, E|E diag(d)|^2 / |W diag(d)|^2 in every row, `channel_scale` is d
    (in_features,), all above zero, ones where None. `label` and device determine it.
    """
    draw = torch.Generator(weight.device).manual_seed(_seed(label))
    error = torch.randn(weight.shape, generator=draw, dtype=weight.dtype, device=weight.device)
    scale = None if channel_scale is None else channel_scale.to(weight)
    energy = (weight if scale is None else weight * scale).square().mean(dim=1, keepdim=True)
    error *= (eps * energy).sqrt()
    return error if scale is None else error.div_(scale)


def _seed(label: str) -> int:
    """A number below 2^63 of its own for every matrix and draw, whichever others are measured and in which order."""
    return int.from_bytes(sha256(label.encode()).digest()[:8], "little") >> 1
