"""Random signs joined to a fast transform. eps = random_signs(RandomState(seed), size), D = diag(eps).

signed_hadamard   Q = D H, H the `hadamard` basis of the size:  Q^T x = H^T (eps * x)
signed_dct_ii     Q = D C, C the `dct` basis:                   Q^T x = DCT(eps * x)
signed_dct        Q = C D C^T, x -> IDCT(eps * DCT(x)): symmetric, its own inverse (arXiv 2609.11687)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from numpy.random import RandomState
from torch import Tensor

from kquant_cli.bases.basis import GeneratedBasis
from kquant_cli.bases.dct import DCT
from kquant_cli.bases.draws import random_signs
from kquant_cli.bases.hadamard import Hadamard
from kquant_cli.bases.spec import BasisSpec

Tables = tuple[Tensor, Any]  # the signs (size,), and what the transform reads


class SignsFirst(GeneratedBasis):
    """Q = D F for a fast transform F: the adjoint changes signs, then transforms."""

    inner: ClassVar[type[GeneratedBasis]]

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """Those of the transform."""
        return cls.inner.numbers(spec)

    def __init__(self, spec: BasisSpec) -> None:
        self._inner = self.inner(spec)
        super().__init__(spec, self._inner.note)
        self._signs = torch.from_numpy(random_signs(RandomState(spec.seed), spec.size))

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> Tables:
        """The signs, and what the transform reads."""
        return self._signs.to(device, dtype), self._inner.tables(device, dtype)

    def rows(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """Signs differ along the rows."""
        signs, inner = tables
        return self._inner.rows(x * signs, inner, True) if adjoint else self._inner.rows(x, inner, False) * signs

    def columns(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """Signs differ along the columns."""
        signs, inner = tables[0][:, None], tables[1]
        return self._inner.columns(x * signs, inner, True) if adjoint else self._inner.columns(x, inner, False) * signs


class SignedHadamard(SignsFirst):
    """Random signs, then the Hadamard transform."""

    inner = Hadamard


class SignedDCTII(SignsFirst):
    """Random signs, then the DCT-II."""

    inner = DCT


class SignedDCT(SignsFirst):
    """Random signs on the coefficients of the DCT-II."""

    inner = DCT

    def rows(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """The same for both directions."""
        return self._inner.rows(self._inner.rows(x, tables[1], True).mul_(tables[0]), tables[1], False)

    def columns(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """The same for both directions."""
        return self._inner.columns(self._inner.columns(x, tables[1], True).mul_(tables[0][:, None]), tables[1], False)
