"""What a product reads: a matrix as its packed codes, and what its two columns of centroids are multiplied with.

    sum_j Cu[code_ij] a_j   and   sum_j Cv[code_ij] b_j        (packing.py has the layout of the codes)

a and b are the activations in the coordinates of the right bases, so that these sums are the whole of the work that
depends on the number of weights: what is left (left bases, row scale) has the size of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kquant_cli.packing import unpack
from kquant_cli.runtime.blocks import codes_of


@dataclass(frozen=True)
class Packed:
    """A matrix (rows, columns): codes (rows, row_bytes), uint8; codebook (levels, 1 or 2), float32; perhaps scales.

    `group_scale` (rows, groups), any float dtype, holds for `group` columns each; None: no scale within a row. Where
    there are `blocks` (blocks.py), the codes are in them, and of `codes` only the shape counts.
    """

    codes: Tensor
    codebook: Tensor
    columns: int
    group_scale: Tensor | None = None
    group: int = 0
    blocks: Tensor | None = None

    def unpacked(self, begin: int, end: int) -> Tensor:
        """The codes (end - begin, columns), uint8, of rows begin to end."""
        if self.blocks is not None:
            return codes_of(self.blocks, self.rows, self.columns, self.levels, begin, end)
        return unpack(self.codes[begin:end], self.levels, self.columns)

    @property
    def rows(self) -> int:
        """Output features."""
        return self.codes.shape[0]

    @property
    def levels(self) -> int:
        """Centroids."""
        return self.codebook.shape[0]
