"""The identity: the paper's first basis, and the side of a frame that is not rotated."""

import torch
from torch import Tensor

from kquant_cli.bases.application import check
from kquant_cli.bases.basis import GeneratedBasis


class Identity(GeneratedBasis):
    """Q = I: `apply` and `adjoint` return their input itself."""

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing to read."""

    def rows(self, x: Tensor, tables: None, adjoint: bool) -> Tensor:
        """The input."""
        return x

    def columns(self, x: Tensor, tables: None, adjoint: bool) -> Tensor:
        """The input."""
        return x

    def _transform(self, x: Tensor, dim: int, out: Tensor | None, adjoint: bool) -> Tensor:
        check(x, dim, self.size, out)
        return x if out is None or out is x else out.copy_(x)
