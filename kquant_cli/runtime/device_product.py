"""Products of whole layers on a CUDA device, from x to y: what is faster than transforms, codes and scales in turn.

    many tokens     the weight is decoded once into a buffer, and multiplied as a dense one (products/dense.py)

A kernel is used only where, at its first use on a device, it computed what the plain reference does
(products/trial.py); everything else takes the steps of operators.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.encoded import Layout
from kquant_cli.runtime.products import Packed, asked_backend, dense


def device_product(
    layout: Layout,
    packed: Packed,
    x: Tensor,
    channel_scale: Tensor | None,
    col_scale: Tensor | None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor | None:
    """y (..., rows) of x (..., columns) in x's dtype, `scale` of the rows and `bias` included; None: not here."""
    frame = layout.frame
    pair = CoupledBases.of(frame.right_u, frame.right_v)
    wanted = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if (
        pair is None
        or frame.left_u
        or frame.left_v
        or col_scale is not None
        or wanted
        or asked_backend() == "reference"
    ):
        return None
    matrix = x.reshape(-1, packed.columns)
    bias = None if bias is None else bias.to(x.dtype)
    if len(matrix) >= dense.DENSE_TOKENS and dense.supports(pair, packed, x):
        y = torch.nn.functional.linear(matrix, dense.decode(pair, packed, x.dtype, channel_scale, scale), bias)
        return y.view(*x.shape[:-1], packed.rows)
    return None
