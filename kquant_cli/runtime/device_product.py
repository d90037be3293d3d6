"""Products of whole layers on a CUDA device, from x to y: what is faster than transforms, codes and scales in turn.

    few tokens      the codes are multiplied by CUDA kernels (products/cuda.py)
    many tokens     the weight is decoded once into a buffer, and multiplied as a dense one (products/dense.py)

Frames are those of coupled_frame.py; bases on the output side have a kernel of their own behind the product, and are
decoded by dense_output.py. A kernel is used only where, at its first use on a device, it computed what the plain
reference does (products/trial.py); everything else takes the steps of operators.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.encoded import Layout
from kquant_cli.runtime.coupled_frame import CoupledFrame
from kquant_cli.runtime.input_transform import InputTransform
from kquant_cli.runtime.products import Packed, asked_backend, cuda, dense, dense_output
from kquant_cli.runtime.products.cuda_trial import product_passed


def device_product(
    layout: Layout,
    packed: Packed,
    x: Tensor,
    channel_scale: Tensor | None,
    col_scale: Tensor | None,
    transform: InputTransform,
    reader: object,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor | None:
    """y (..., rows) of x (..., columns) in x's dtype, `scale` of the rows and `bias` included; None: not here.

    `transform` keeps what layers share that read the same x; `reader` is the layer, as it takes it.
    """
    frame = CoupledFrame.of(layout.frame)
    wanted = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if frame is None or wanted:
        return None
    asked, matrix = asked_backend(), x.reshape(-1, packed.columns)
    if asked == "reference" or packed.codes.device != x.device:
        return None
    channel_scale = None if channel_scale is None else channel_scale.to(x.device)  # another layer's, perhaps elsewhere
    bias = None if bias is None else bias.to(x.dtype)
    scales = dense.Scales(scale, col_scale, channel_scale)
    if (weight := _decoded(frame, packed, x, len(matrix), scales)) is not None:
        return torch.nn.functional.linear(matrix, weight, bias).view(*x.shape[:-1], packed.rows)
    if asked is None and cuda.transforms(frame.right, matrix):
        found = cuda.look_up_of(packed)
        if found is not None and product_passed(frame.right, packed, found, matrix, frame.left):
            if col_scale is None:
                of_x = transform.prepared(x, channel_scale, reader, found.digits)
            else:  # which is this layer's own
                split = frame.left is not None
                of_x = cuda.prepared(frame.right, matrix, channel_scale, found.digits, col_scale, split)
            y = cuda.product(packed, found, of_x, scale, bias, x.dtype, frame.left)
            return y.view(*x.shape[:-1], packed.rows)
    return None


def _decoded(frame: CoupledFrame, packed: Packed, x: Tensor, tokens: int, scales: dense.Scales) -> Tensor | None:
    """The dense weight (rows, columns), bases and scales included; None where `tokens` are too few or it cannot be."""
    if frame.left is not None:
        if tokens >= dense_output.DENSE_TOKENS and dense_output.supports(frame.left, frame.right, packed, x, scales):
            return dense_output.decode(frame.left, frame.right, packed, x.dtype, scales)
    elif frame.right is not None and tokens >= dense.DENSE_TOKENS and dense.supports(frame.right, packed, x, scales):
        return dense.decode(frame.right, packed, x.dtype, scales)
    return None
