"""Whole layers in one call on a CPU: scale of channels, bases, product, scale of rows and bias, by native/layer.h.

    y = scale (Cu[codes] A^T (x / d) + Cv[codes] B^T (x / d)) + bias        (encoded.py)

for codes in blocks and the two bases of the annealed encoder, or none. Layers that read the same input (q, k and v;
gate and up) are one call. With more than FEW tokens only A^T (x / d) is computed, rows are decoded to u + Q v
(coupled.py), a tile at a time, and torch multiplies: in bfloat16 where the input has 16 bits and the processor
multiplies bfloat16 (an error of 3e-3 in y, where 4 bits are 9e-2 off), else in float32.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.encoded import Layout
from kquant_cli.runtime.basis_pair import is_fast, second_by_order
from kquant_cli.runtime.layer_loops import NUMBERS, LayerStruct, MatrixStruct, address, call, loops
from kquant_cli.runtime.products.lookup import BLOCK_ROWS, tiles
from kquant_cli.runtime.torch_threads import parallel, threads_for


class InOneCall(Protocol):
    """What a call must know of a layer: `KashinLinear` is one."""

    layout: Layout
    in_features: int
    out_features: int
    blocks: Tensor | None
    ready: bool
    bias: Any
    _parameters: Any

    @property
    def codebook(self) -> Tensor:
        """The codebook (levels, 1 or 2)."""

    def shared_channel_scale(self) -> Tensor | None:
        """The channel scale, its own or another's."""


def supports(layer: InOneCall) -> bool:
    """Whether a call computes this layer, whose codes are in blocks: all but left bases, and scales of columns."""
    layout, frame = layer.layout, layer.layout.frame
    if frame.left_u is not None or frame.left_v is not None or layout.col_scale:
        return False
    scale = layer._parameters.get("weight_scale")
    if any(tensor is not None and tensor.dtype not in NUMBERS for tensor in (scale, layer.bias)):
        return False
    pair = CoupledBases.of(frame.right_u, frame.right_v)
    if pair is None:
        return frame.right_u is None and frame.right_v is None and not layout.channel_scale
    return is_fast(pair) and layout.columns == 2


def takes(x: Tensor, bias: Tensor | None) -> bool:
    """Whether a call computes y of x: on a CPU, no float64, and nobody wants gradients."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return x.dtype in NUMBERS and x.device.type == "cpu"


class CpuLayer:
    """The call for `layers` that read one input; it must be made anew when a tensor of theirs is another."""

    def __init__(self, layers: Sequence[InOneCall]) -> None:
        self.columns = layers[0].in_features
        self.rows = [layer.out_features for layer in layers]
        self.works = self.columns * sum(self.rows)  # multiplications a token
        self._bias = layers[0].bias
        self.watched = [watched for layer in layers for watched in _watched(layer)]
        self._run = loops().kquant_layer
        codebooks = [_codebook(layer) for layer in layers]
        self._matrices = (MatrixStruct * len(layers))(*map(_matrix, layers, codebooks))
        for i, (layer, codebook) in enumerate(zip(layers, codebooks, strict=True)):
            same = (j for j, other in enumerate(codebooks[: i + 1]) if torch.equal(other, codebook))
            self._matrices[i].tables = next(same, i) if layer.layout.columns == 2 else i
        tensors = [tensor for _, _, tensor, _ in self.watched]
        self._kept: list[Any] = [codebooks, [t.detach() for t in tensors if t is not None]]  # whoever else lets go
        self._layer = LayerStruct(columns=self.columns, count=len(layers))
        self._layer.matrices = ctypes.addressof(self._matrices)
        self._add_bases(layers[0])
        self.address = ctypes.addressof(self._layer)

    def is_current(self) -> bool:
        """Whether the layers' tensors are still those that the call reads."""
        for parameters, name, tensor, pointer in self.watched:  # a plain loop: this is asked at every token
            if parameters.get(name) is not tensor or (tensor is not None and tensor.data_ptr() != pointer):
                return False
        return True

    def few(self, x: Tensor) -> Sequence[Tensor]:
        """y (tokens, out_features) of every layer, in x's dtype, of x (tokens, in_features)."""
        tokens, dtype = len(x), NUMBERS[x.dtype]
        out = x.new_empty(tokens, sum(self.rows))
        threads = threads_for(tokens * self.works)
        if self._run(self.address, x.data_ptr(), dtype, tokens, out.data_ptr(), dtype, threads, parallel()):
            raise MemoryError("no memory for the tables of a product")
        if len(self.rows) == 1:
            return (out,)
        if tokens == 1:
            return out.split(self.rows, 1)
        return [part.view(tokens, -1) for part in out.view(-1).split([tokens * rows for rows in self.rows])]

    def coordinates(self, x: Tensor) -> Tensor:
        """A^T (x / d) of x (tokens, in_features), in the dtype of `many`."""
        dtype = _product_dtype(x.dtype)
        if not self._layer.order:
            return x.to(dtype)
        a = x.new_empty(x.shape, dtype=dtype)
        work = x.numel() * int(math.log2(self.columns))
        arguments = (self.address, x.data_ptr(), NUMBERS[x.dtype], len(x), a.data_ptr(), NUMBERS[dtype])
        call("kquant_transform_first", *arguments, work=work)
        return a

    def many(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        """y (tokens, out_features) of the first layer, in `dtype`, from `coordinates` (tokens, in_features)."""
        rows, out = self.rows[0], a.new_empty(len(a), self.rows[0])
        for begin, count in tiles(rows, self.columns):
            part = slice(begin * BLOCK_ROWS, min(rows, (begin + count) * BLOCK_ROWS))
            tile = a.new_empty(count * BLOCK_ROWS, self.columns)
            arguments = (self.address, begin, count, tile.data_ptr(), None, NUMBERS[a.dtype])
            call("kquant_dense", *arguments, work=tile.numel())
            torch.mm(a, tile[: part.stop - part.start].T, out=out[:, part])
        if self._bias is not None:
            out += self._bias.detach()
        return out.to(dtype)

    def _add_bases(self, layer: InOneCall) -> None:
        frame = layer.layout.frame
        pair = CoupledBases.of(frame.right_u, frame.right_v)
        tables = None if pair is None else pair.loop_tables()
        if pair is None or tables is None:
            return
        scale, second = layer.shared_channel_scale(), second_by_order(pair)
        inverse = None if scale is None else scale.detach().float().reciprocal()
        self._kept += [tables, second, inverse]
        into = self._layer
        into.power, into.order = tables.power, tables.order
        into.inverse, into.first, into.second = address(inverse), address(tables.first), address(second)
        into.dense, into.transposed = address(tables.dense), address(tables.dense_transposed)


def _watched(layer: InOneCall) -> list[tuple[Any, str, Tensor | None, int]]:
    """Where the tensors stand that a call reads, and what and where they are."""
    names = ("weight_codebook", "weight_scale", "weight_channel_scale", "bias")
    found = [(layer._parameters, name, layer._parameters[name]) for name in names if name in layer._parameters]
    found.append((layer.__dict__, "blocks", layer.blocks))  # new ones with every change of codes
    return [(place, name, tensor, 0 if tensor is None else tensor.data_ptr()) for place, name, tensor in found]


def _codebook(layer: InOneCall) -> Tensor:
    """The codebook; of a constant one without its exponent, so that layers that read one input share their tables."""
    constant = replace(layer.layout, exponent=0).grid_codebook(torch.device("cpu"))
    return layer.codebook.detach().float().contiguous() if constant is None else constant


def _matrix(layer: InOneCall, codebook: Tensor) -> MatrixStruct:
    scale, bias = layer._parameters.get("weight_scale"), layer.bias
    return MatrixStruct(
        blocks=address(layer.blocks),
        codebook=codebook.data_ptr(),
        scale=address(scale),
        bias=address(bias),
        rows=layer.out_features,
        levels=layer.layout.levels,
        book_columns=layer.layout.columns,
        scales=0 if scale is None else scale.numel(),
        scale_dtype=0 if scale is None else NUMBERS[scale.dtype],
        bias_dtype=0 if bias is None else NUMBERS[bias.dtype],
        factor=math.ldexp(1.0, layer.layout.exponent),
    )


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype != torch.float32 and multiplies_bfloat16() else torch.float32


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
