"""A product of `count` random reflections: Q = H_count ... H_2 H_1, H_i = I - 2 v_i v_i^T / |v_i|^2.

The first drawn acts first. The vectors are the rows of RandomState(seed).standard_normal((count, size)). Up to 64
reflections at a time are applied together: for the columns V = (v_1 .. v_k), H_1 ... H_k = I - V T V^T with T upper
triangular and T^-1 = striu(V^T V) + diag(V^T V) / 2 (the compact WY form of R. Schreiber and C. Van Loan, 1989, in X.
Sun and C. Bischof's expression for T).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from numpy.random import RandomState
from torch import Tensor

from kquant_cli.bases.basis import GeneratedBasis
from kquant_cli.bases.spec import BasisSpec

TOGETHER = 64  # reflections in one block: two thin products with V, and a small one with T

Tables = list[tuple[Tensor, Tensor]]  # for each block, the first first: V (size, k) with unit columns, and T (k, k)


class Householder(GeneratedBasis):
    """`count` random reflections (default 1), each a rank-one update; count * size numbers are kept."""

    options: ClassVar[dict[str, int]] = {"count": 1}

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """The vectors, and T of each block."""
        return spec.options.get("count", cls.options["count"]) * max(spec.size, TOGETHER)

    def __init__(self, spec: BasisSpec) -> None:
        super().__init__(spec)
        normal = torch.from_numpy(RandomState(spec.seed).standard_normal((self.option("count"), spec.size)))
        self._vectors = torch.nn.functional.normalize(normal, dim=1, eps=0.0)

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> Tables:
        """V and T of each block, T computed in float64."""
        blocks = []
        for rows in self._vectors.split(TOGETHER):
            gram = rows @ rows.T
            inverse = gram.triu(1) + gram.diagonal().div(2).diag()
            t = torch.linalg.solve_triangular(inverse, torch.eye(len(rows), dtype=torch.float64), upper=True)
            blocks.append((rows.T.to(device, dtype).contiguous(), t.to(device, dtype)))
        return blocks

    def rows(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """Rows x to x - x V T V^T, or with T^T for the adjoint and the blocks from the last."""
        for v, t in reversed(tables) if adjoint else tables:
            x = torch.addmm(x, _products(x, v) @ (t.T if adjoint else t), v.T, alpha=-1)
        return x

    def columns(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """Columns x to x - V T^T V^T x, or with T for the adjoint and the blocks from the last."""
        for v, t in reversed(tables) if adjoint else tables:
            x = torch.addmm(x, v, (t if adjoint else t.T) @ _products(x.T, v).T, alpha=-1)
        return x


def _products(x: Tensor, v: Tensor) -> Tensor:
    """x V; for one vector without BLAS, which there may round otherwise at each call."""
    return (x * v.T).sum(dim=1, keepdim=True) if v.shape[1] == 1 else x @ v
