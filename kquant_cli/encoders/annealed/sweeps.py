"""What drives the annealing, sweep by sweep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.random import RandomState
from torch import Tensor


@dataclass(frozen=True)
class Sweeps:
    """What drives the annealing: codebook (K, 2), betas and momenta (sweeps,), moving (hard, size) bool; on the CPU."""

    codebook: Tensor
    betas: Tensor
    momenta: Tensor
    moving: Tensor


def moving_positions(sweeps: int, size: int, share: float, seed: int) -> Tensor:
    """Which positions each hard sweep moves: (sweeps, size) bool, the same on every machine."""
    return torch.from_numpy(RandomState(seed).random_sample((sweeps, size)) < share)
