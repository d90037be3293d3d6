"""What a layer computes from its codes, and the same as operators that torch.compile and torch.export keep whole.

    y = L_u (Cu[codes] S a) + L_v (Cv[codes] S b),    a = R_u^T (x / d),  b = R_v^T (x / d)        (encoded.py)

Of `kquant::product`, `kquant::product_backward` and `kquant::rows` a compiler sees shapes and dtypes alone. What runs
is what runs without it: kernels, C++ and bases, which no compiler could trace. The scale of rows and the bias of a
product stay outside, where they can be fused with what follows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.packing import row_bytes, unpack
from kquant_cli.runtime.basis_cache import BasisCache
from kquant_cli.runtime.device_product import device_product
from kquant_cli.runtime.input_transform import InputTransform, computed_dtype
from kquant_cli.runtime.products import Packed, product, transposed_product

KEPT = 256  # layouts that are read and whose bases stay made; matrices of one size share one
MATRIX = "Tensor codes, Tensor? codebook, Tensor? group_scale, Tensor? col_scale, Tensor? channel_scale, str layout"


def unscaled(
    layout: Layout, inputs: tuple[Tensor, Tensor | None], packed: Packed, col_scale: Tensor | None, bases: BasisCache
) -> Tensor:
    """y (tokens, out_features) of a and b, before the scale of rows and the bias, in their dtype."""
    a, b = inputs
    frame = layout.frame
    if col_scale is not None:
        a = a * col_scale.to(a.dtype)
        b = None if b is None else b * col_scale.to(a.dtype)
    split = b is not None and frame.left_u != frame.left_v
    y, y_v = product(packed, a, b, split)
    if frame.left_u is not None:
        y = bases(frame.left_u).apply(y)
    if y_v is not None:
        y = y + (y_v if frame.left_v is None else bases(frame.left_v).apply(y_v))
    return y


def layout_key(layout: Layout) -> str:
    """What the operators must know of a layout, as a text that a graph can hold."""
    return json.dumps(replace(layout, scale=None, channel_scale=False, channel_scale_from=None).to_dict())


@lru_cache(KEPT)
def _known(key: str) -> tuple[Layout, InputTransform, BasisCache]:
    """The layout, and its bases, which stay for later calls: a graph has no layer that could keep them."""
    layout = Layout.from_dict(json.loads(key))
    return layout, InputTransform(layout.frame.right_u, layout.frame.right_v, layout.columns), BasisCache()


def _packed(layout: Layout, codes: Tensor, codebook: Tensor | None, group_scale: Tensor | None) -> Packed:
    """The matrix; codes of one dimension are blocks (blocks.py)."""
    constant = layout.grid_codebook(codes.device)
    codebook = codebook if constant is None else constant
    assert codebook is not None
    rows, columns = layout.shape
    if codes.dim() == 2:
        return Packed(codes, codebook, columns, group_scale, layout.group)
    placeholder = codes.new_empty(1).expand(rows, row_bytes(columns, layout.levels))
    return Packed(placeholder, codebook, columns, group_scale, layout.group, codes)


@torch.library.custom_op("kquant::product", mutates_args=(), schema=f"(Tensor x, {MATRIX}) -> Tensor")
def compiled_product(
    x: Tensor,
    codes: Tensor,
    codebook: Tensor | None,
    group_scale: Tensor | None,
    col_scale: Tensor | None,
    channel_scale: Tensor | None,
    key: str,
) -> Tensor:
    """y (..., out_features) of x (..., in_features) by `unscaled`; `key` is that of `layout_key`.

    `codebook` is None where the layout has a constant one.
    """
    layout, transform, bases = _known(key)
    packed = _packed(layout, codes, codebook, group_scale)
    y = device_product(layout, packed, x, channel_scale, col_scale, transform, None)
    if y is not None:
        return y.to(computed_dtype(x))
    y = unscaled(layout, transform(x, channel_scale, None), packed, col_scale, bases)
    return y.view(*x.shape[:-1], y.shape[-1])


@compiled_product.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], _known(rest[-1])[0].shape[0], dtype=computed_dtype(x))


@torch.library.custom_op("kquant::product_backward", mutates_args=(), schema=f"(Tensor g, {MATRIX}) -> Tensor")
def _product_backward(
    g: Tensor,
    codes: Tensor,
    codebook: Tensor | None,
    group_scale: Tensor | None,
    col_scale: Tensor | None,
    channel_scale: Tensor | None,
    key: str,
) -> Tensor:
    """The gradient with respect to x, from g (..., out_features) with respect to y: every step transposed."""
    layout, _, bases = _known(key)
    frame, packed = layout.frame, _packed(layout, codes, codebook, group_scale)
    y = g.reshape(-1, g.shape[-1])
    of_u, of_v = (y if left is None else bases(left).adjoint(y) for left in (frame.left_u, frame.left_v))
    x = torch.zeros_like(y[:, :1])
    for part, right in zip(transposed_product(packed, of_u, of_v), (frame.right_u, frame.right_v), strict=True):
        if part is not None:
            part = part if col_scale is None else part * col_scale.to(part.dtype)  # noqa: PLW2901
            x = x + (part if right is None else bases(right).apply(part))
    x = x if channel_scale is None else (x / channel_scale).to(x.dtype)
    return x.view(*g.shape[:-1], layout.shape[1])


@_product_backward.register_fake
def _(g: Tensor, *matrix: Any) -> Tensor:
    return g.new_empty(*g.shape[:-1], _known(matrix[-1])[0].shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *matrix = inputs
    ctx.save_for_backward(*matrix[:-1])
    ctx.key, ctx.dtype = matrix[-1], x.dtype


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return _product_backward(g, *ctx.saved_tensors, ctx.key).to(ctx.dtype), *[None] * 6


compiled_product.register_autograd(_backward, setup_context=_setup_context)


def decoded_rows(
    ids: Tensor,
    codes: Tensor,
    codebook: Tensor | None,
    scale: Tensor | None,
    col_scale: Tensor | None,
    channel_scale: Tensor | None,
    like: Tensor,
    key: str,
) -> Tensor:
    """Rows `ids` (n,) of a matrix without bases on its left, decoded: (n, columns) in the dtype of `like`."""
    layout = _known(key)[0]
    rows = unpack(codes.index_select(0, ids), layout.levels, layout.shape[1])
    scale = scale if scale is None or len(scale) == 1 else scale.index_select(0, ids)
    constant = layout.grid_codebook(codes.device)
    codebook = codebook if constant is None else constant
    assert codebook is not None
    return EncodedMatrix(layout, rows, codebook, scale, col_scale, channel_scale).decode(like.dtype)


compiled_rows = torch.library.custom_op(
    "kquant::rows",
    decoded_rows,
    mutates_args=(),
    schema="(Tensor ids, Tensor codes, Tensor? codebook, Tensor? scale, Tensor? col_scale, Tensor? channel_scale, "
    "Tensor like, str layout) -> Tensor",
)


@compiled_rows.register_fake
def _(ids: Tensor, *rest: Any) -> Tensor:
    return rest[-2].new_empty(len(ids), _known(rest[-1])[0].shape[1])
