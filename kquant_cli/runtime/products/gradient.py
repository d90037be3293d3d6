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
        of_v = second if ctx.split and second is not None else first
        return *transposed_product(ctx.packed, first, of_v), None, None, None


def transposed_product(packed: Packed, of_u: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor | None]:
    """of_u Cu[codes] and of_v Cv[codes], both (tokens, columns), of (tokens, rows); None where there is no v."""
    a = of_u.new_zeros(len(of_u), packed.columns)
    b = torch.zeros_like(a) if packed.codebook.shape[1] == 2 else None
    for rows, u, v in tiles(packed, of_u.dtype):
        a += of_u[:, rows] @ u
        if b is not None and v is not None:
            b += of_v[:, rows] @ v
    return a, b
