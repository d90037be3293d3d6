"""A matrix of the checkpoint, read for the device that it goes to."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from kquant_cli.checkpoint import Checkpoint, Matrix


def read_weight(checkpoint: Checkpoint, matrix: Matrix, device: torch.device | str) -> Tensor:
    """The weight (out_features, in_features), on the CPU; for a GPU in memory that it copies from by itself."""
    weight = _read(checkpoint, matrix.tensor, pinned=torch.device(device).type == "cuda")
    return weight.T if matrix.transposed else weight


def _read(checkpoint: Checkpoint, tensor: str, *, pinned: bool) -> Tensor:
    """The tensor, in pinned memory if the system gives any."""
    if pinned:
        with suppress(RuntimeError):  # of torch, where it does not
            return checkpoint.read(tensor, pinned=True)
    return checkpoint.read(tensor)
