"""Bases that are kept as a matrix: any orthogonal one, and `qr`, a random one from the QR decomposition."""

from __future__ import annotations

from typing import ClassVar

import torch
from numpy.random import RandomState
from torch import Tensor

from kquant_cli.bases.application import DEVICE_CHUNK
from kquant_cli.bases.basis import Basis, GeneratedBasis
from kquant_cli.bases.spec import BasisSpec


class DenseBasis(Basis):
    """Wraps an orthogonal `matrix` (size, size), of floats; ValueError where it is not square or not orthogonal."""

    chunk: ClassVar[int] = DEVICE_CHUNK  # every chunk reads the whole matrix

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
            raise ValueError(f"a basis is a square float matrix, not {matrix.dtype} of shape {tuple(matrix.shape)}")
        super().__init__(matrix.shape[0])
        self.matrix = matrix
        # A random vector costs n^2 where Q^T Q costs n^3, and a matrix that is not orthogonal almost surely changes it.
        probe = torch.from_numpy(RandomState(0).standard_normal(self.size)).to(matrix.device, matrix.dtype)
        error = torch.linalg.vector_norm(self.adjoint(self.apply(probe)) - probe) / torch.linalg.vector_norm(probe)
        if not error <= 100 * torch.finfo(matrix.dtype).eps:
            raise ValueError(f"the matrix is not orthogonal: Q^T Q x differs from x by {error:.2g} of its norm")

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The matrix."""
        return self.matrix.to(device, dtype)

    def rows(self, x: Tensor, tables: Tensor, adjoint: bool) -> Tensor:
        """A product from the right."""
        return x @ (tables if adjoint else tables.T)

    def columns(self, x: Tensor, tables: Tensor, adjoint: bool) -> Tensor:
        """A product from the left."""
        return (tables.T if adjoint else tables) @ x


class QR(GeneratedBasis):
    """A uniformly random orthogonal matrix: Q of the decomposition Q R of a Gaussian matrix, diag(R) positive.

    The Gaussian matrix is RandomState(seed).standard_normal((size, size)), decomposed in float64; size^2 numbers are
    kept.
    """

    chunk: ClassVar[int] = DEVICE_CHUNK

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """The matrix."""
        return spec.size**2

    def __init__(self, spec: BasisSpec) -> None:
        super().__init__(spec)
        gaussian = torch.from_numpy(RandomState(spec.seed).standard_normal((spec.size, spec.size)))
        q, r = torch.linalg.qr(gaussian)
        self._inner = DenseBasis(q.mul_(torch.sign(r.diagonal())))

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The matrix."""
        return self._inner.make_tables(device, dtype)

    def rows(self, x: Tensor, tables: Tensor, adjoint: bool) -> Tensor:
        """A product from the right."""
        return self._inner.rows(x, tables, adjoint)

    def columns(self, x: Tensor, tables: Tensor, adjoint: bool) -> Tensor:
        """A product from the left."""
        return self._inner.columns(x, tables, adjoint)
