"""The product in plain torch, for every matrix and device, a tile of rows at a time: what the others are tested on.

The dtype of the activations is that of the arithmetic; a tile of decoded weights is all that is held beside them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kquant_cli.runtime.products.packed import Packed

TILE = 2**20  # weights decoded at a time


def product(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    """The sums with a and b (tokens, columns), each (tokens, rows); their sum and None unless `split`.

    b is None where the codebook has one column.
    """
    first = a.new_empty(len(a), packed.rows)
    second = torch.empty_like(first) if split and b is not None else None
    for rows, u, v in tiles(packed, a.dtype):
        first[:, rows] = a @ u.T
        if v is None or b is None:
            continue
        if second is None:
            first[:, rows] += b @ v.T
        else:
            second[:, rows] = b @ v.T
    return first, second


def tiles(packed: Packed, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Rows, and their u and v (rows, columns), group scales applied; v is None where the codebook has one column."""
    step = max(1, TILE // packed.columns)
    for begin in range(0, packed.rows, step):
        rows = slice(begin, begin + step)
        codes = packed.unpacked(begin, begin + step).int()
        columns = packed.codebook.to(dtype).unbind(1)
        u, *rest = (torch.embedding(column.unsqueeze(1), codes).squeeze(-1) for column in columns)
        if packed.group_scale is not None:
            scale = packed.group_scale[rows].to(dtype).repeat_interleave(packed.group, dim=1)[:, : packed.columns]
            u, rest = u * scale, [v * scale for v in rest]
        yield rows, u, rest[0] if rest else None


def supports(packed: Packed, a: Tensor, split: bool) -> bool:
    """Every product."""
    return True
