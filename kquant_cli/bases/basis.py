"""What a basis is: an orthogonal matrix Q (size, size) that applies itself and its transpose to tensors.

A kind of basis gives two kernels, for the rows and for the columns of a matrix, and the tables they read (signs,
twiddle factors, small dense blocks), made once for each device and dtype. `application` brings every tensor to these
kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from kquant_cli.bases.application import CPU_CHUNK, transform
from kquant_cli.bases.spec import BasisSpec


class Basis(ABC):
    """An orthogonal matrix Q (size, size).

    `spec` regenerates it (None where nothing but the matrix itself does), `note` is "" or a sentence worth telling the
    user.
    """

    chunk: ClassVar[int] = CPU_CHUNK  # elements that a kernel gets at a time on a CPU

    def __init__(self, size: int, spec: BasisSpec | None = None, note: str = "") -> None:
        self.size = size
        self.spec = spec
        self.note = note
        self._tables: dict[tuple[torch.device, torch.dtype], Any] = {}

    def apply(self, x: Tensor, dim: int = -1, out: Tensor | None = None) -> Tensor:
        """Q x along `dim` of `x`, of any float dtype (16-bit floats compute in float32) and on any device.

        `out`, of x's shape, dtype and device, takes the result, without gradients; it may be `x` itself. Raises
        ValueError where shapes or dtypes do not fit.
        """
        return self._transform(x, dim, out, adjoint=False)

    def adjoint(self, x: Tensor, dim: int = -1, out: Tensor | None = None) -> Tensor:
        """Q^T x along `dim` of `x`; as `apply` in everything else."""
        return self._transform(x, dim, out, adjoint=True)

    def dense(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """Q itself (size, size), computed in float64 on the CPU, then brought to `dtype` and `device`."""
        q = torch.eye(self.size, dtype=torch.float64)
        return self.apply(q, dim=0, out=q).to(device, dtype)

    def tables(self, device: torch.device, dtype: torch.dtype) -> Any:
        """What the kernels read, on `device` and in `dtype`; made at the first call."""
        key = (device, dtype)
        if key not in self._tables:
            self._tables[key] = self.make_tables(device, dtype)
        return self._tables[key]

    @abstractmethod
    def make_tables(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Make what the kernels read."""

    @abstractmethod
    def rows(self, x: Tensor, tables: Any, adjoint: bool) -> Tensor:
        """The kernel for rows: x (r, size) to x Q^T, or to x Q if `adjoint`; `x` is not changed."""

    @abstractmethod
    def columns(self, x: Tensor, tables: Any, adjoint: bool) -> Tensor:
        """The kernel for columns: x (size, c) to Q x, or to Q^T x if `adjoint`; `x` is not changed."""

    def _transform(self, x: Tensor, dim: int, out: Tensor | None, adjoint: bool) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled() and out is None:
            return _Differentiable.apply(x, self, dim, adjoint)
        tables = self.tables(x.device, torch.promote_types(x.dtype, torch.float32))
        result = transform(
            x.detach(),  # the threads that share the work do not inherit `no_grad`
            dim,
            self.size,
            rows=lambda part: self.rows(part, tables, adjoint),
            columns=lambda part: self.columns(part, tables, adjoint),
            out=None if out is None else out.detach(),
            chunk=self.chunk,
        )
        return result if out is None else out


class GeneratedBasis(Basis):
    """A basis that its `spec` (kind, size, seed, options) regenerates, bit for bit where no rounding is involved.

    `options` names the kind's options with their defaults; 0 stands for a default that depends on the size. Generating
    may raise KQuantError where the kind has no basis of that size.
    """

    options: ClassVar[Mapping[str, int]] = {}

    def __init__(self, spec: BasisSpec, note: str = "") -> None:
        super().__init__(spec.size, spec, note)

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """How many numbers a basis of `spec` keeps or draws, where these are more than a few for each of `size`."""
        return 0

    def option(self, name: str) -> int:
        """The option's value, or its default."""
        assert self.spec is not None
        return self.spec.options.get(name, self.options[name])


class _Differentiable(torch.autograd.Function):
    """A basis is linear: the gradient of Q x is Q^T times the gradient, and the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, basis: Basis, dim: int, adjoint: bool) -> Tensor:
        ctx.basis, ctx.dim, ctx.adjoint = basis, dim, adjoint
        return basis._transform(x.detach(), dim, None, adjoint)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.basis._transform(gradient, ctx.dim, None, not ctx.adjoint), None, None, None
