"""Q = I (x) F_1 (x) F_2 (x) ...: a product with Q is one with each small factor, along its own part of the index."""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.bases.basis import GeneratedBasis
from kquant_cli.bases.spec import BasisSpec


class KroneckerBasis(GeneratedBasis):
    """Blocks of `block` on the diagonal (one, by default); the tables are the factors, the leftmost first."""

    def __init__(self, spec: BasisSpec, note: str = "", block: int | None = None) -> None:
        super().__init__(spec, note)
        self.block = block or spec.size

    def rows(self, x: Tensor, tables: list[Tensor], adjoint: bool, inner: int = 1) -> Tensor:
        """(r, blocks, f_1, f_2, ..., f_last, inner): a product along each factor's axis, the last first."""
        shape = x.shape
        for factor in reversed(tables):
            h = factor.T if adjoint else factor
            order = len(h)
            x = x.reshape(-1, order) @ h.T if inner == 1 else _batched(h, x.view(-1, order, inner))
            inner *= order
        return x.view(shape)

    def columns(self, x: Tensor, tables: list[Tensor], adjoint: bool) -> Tensor:
        """(blocks, f_1, f_2, ..., f_last, c): a product along each factor's axis, the first first."""
        shape, inner = x.shape, self.block
        for factor in tables:
            h = factor.T if adjoint else factor
            inner //= len(h)
            x = _batched(h, x.reshape(-1, len(h), inner * shape[1]))
        return x.view(shape)


def _batched(h: Tensor, x: Tensor) -> Tensor:
    """h (n, n) times each x (batch, n, inner)."""
    return h @ x[0][None] if len(x) == 1 else torch.bmm(h.expand(len(x), *h.shape), x)
