"""The gradient of a product with respect to the activations: the transposed product, by tiles of decoded rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kquant_cli.runtime.products.packed import Packed
from kquant_cli.runtime.products.reference import tiles


class DifferentiableProduct(torch.autograd.Function):
    """`product` of any backend, whose gradient with respect to a is g Cu[codes], and to b is g Cv[codes]."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor | None, packed: Packed, split: bool, product: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The product itself."""
        ctx.packed, ctx.split = packed, split
        return product(packed, a.detach(), None if b is None else b.detach(), split)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of a and b, from those of the sums (of their sum, unless split)."""
        grad_a = first.new_zeros(len(first), ctx.packed.columns)
        grad_b = torch.zeros_like(grad_a) if ctx.packed.codebook.shape[1] == 2 else None
        for rows, u, v in tiles(ctx.packed, first.dtype):
            grad_a += first[:, rows] @ u
            if grad_b is not None and v is not None:
                of_v = second if ctx.split and second is not None else first
                grad_b += of_v[:, rows] @ v
        return grad_a, grad_b, None, None, None
