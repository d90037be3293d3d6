"""The output head of a model for one token on a CPU: a dense product that reads its matrix at the memory's speed.

The head of a small language model is as many bytes as all of its codes, and torch's product of one token with a matrix
in 16 bits takes twice the time that reading it takes (native/head.h).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kquant_cli.runtime.layer_loops import NUMBERS, address, call


def quicken(model: Any) -> None:
    """Have the model's output head, where it is a linear layer of torch's, multiply single tokens by our loops."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is nn.Linear:
        head.forward = HeadStep(head)  # type: ignore[assignment]


class HeadStep:
    """Takes the place of a linear layer's `forward`."""

    def __init__(self, head: nn.Linear) -> None:
        self.head = head

    def __call__(self, x: Tensor) -> Tensor:
        """y (..., out_features) of x (..., in_features)."""
        weight, bias = self.head.weight, self.head.bias
        if (
            x.numel() != weight.shape[1]
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or weight.device.type != "cpu"
            or not x.dtype == weight.dtype == (weight if bias is None else bias).dtype
            or x.dtype not in NUMBERS
            or not weight.is_contiguous()
        ):
            return nn.Linear.forward(self.head, x)
        x, rows = x.contiguous(), weight.shape[0]
        y = x.new_empty(*x.shape[:-1], rows)
        matrix = (weight.data_ptr(), address(bias), NUMBERS[x.dtype], *weight.shape)
        call("kquant_head", *matrix, x.data_ptr(), y.data_ptr(), work=weight.numel())
        return y
