"""Matrices with coupled bases on the output side, as an encoder makes them, of random codes and scales."""

from __future__ import annotations

import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.codebooks.integer_grids import ring_name
from kquant_cli.encoded import EncodedMatrix, Frame, Layout


def output_side(
    levels: int,
    rows: int,
    columns: int,
    right: bool = True,
    row_scale: bool = True,
    channel_scale: bool = False,
    stored: bool = False,
) -> EncodedMatrix:
    """diag(s) (A Cu[codes] + B Cv[codes]) diag(c) R^T diag(1 / d), without R, s and d where they are not wanted."""
    draw = torch.Generator().manual_seed(levels + rows + columns)
    left, one = CoupledBases(rows, 3), CoupledBases(columns, 4).first if right else None
    layout = Layout(
        (rows, columns),
        levels,
        Frame(left_u=left.first, left_v=left.second, right_u=one, right_v=one),
        grid=None if stored else ring_name(levels),
        scale=(rows, 1) if row_scale else None,
        col_scale=True,
        channel_scale=channel_scale,
    )
    constant = layout.grid_codebook(torch.device("cpu"))
    codebook = torch.randn(levels, 2, generator=draw) if constant is None else constant
    scale, column, channel = ((torch.rand(n, generator=draw) + 0.5).half() for n in (rows, columns, columns))
    return EncodedMatrix(
        layout,
        torch.randint(levels, (rows, columns), generator=draw, dtype=torch.uint8),
        codebook,
        scale.unsqueeze(1) if row_scale else None,
        column,
        channel if channel_scale else None,
    )
