"""Whole layers in one call on a CPU: scale of channels, bases, product, scale of rows and bias, by native/layer.h.

    y = scale (L_u Cu[codes] S R_u^T (x / d) + L_v Cv[codes] S R_v^T (x / d)) + bias        (encoded.py)

for codes in blocks and the two coupled bases A and B, on either side:

    input side     L none, R_u = A, R_v = B or none
    output side    L_u = A, L_v = B, R_u = R_v = A (of another size and seed) or none

Layers that read the same input (q, k and v; gate and up) are one call. With more than FEW tokens only A^T (x / d) is
computed, rows or columns are decoded to u + Q v (coupled.py), a tile at a time, and torch multiplies: in bfloat16 where
the input has 16 bits and the processor multiplies bfloat16 (an error of 3e-3 in y, where 4 bits are 9e-2 off), else in
float32. On the output side A follows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.devices import multiplies_bfloat16
from kquant_cli.encoded import Layout
from kquant_cli.runtime.basis_pair import bases_of_loops, is_fast, loop_bases
from kquant_cli.runtime.layer_loops import NUMBERS, BasesStruct, LayerStruct, MatrixStruct, address, call, loops
from kquant_cli.runtime.products.lookup import BLOCK_ROWS, tiles
from kquant_cli.runtime.torch_threads import parallel, threads_for

PANEL = 64  # columns
PANELS = 2**23  # bytes of decoded panels: in bfloat16 each more of them rounds the sums once more


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
    """Whether a call computes this layer, whose codes are in blocks."""
    layout, frame = layer.layout, layer.layout.frame
    tensors = [layer._parameters.get("weight_scale"), layer._parameters.get("weight_col_scale"), layer.bias]
    if any(tensor is not None and tensor.dtype not in NUMBERS for tensor in tensors):
        return False
    left, right = CoupledBases.of(frame.left_u, frame.left_v), bases_of_loops(frame.right_u, frame.right_v)
    if (left is None and (frame.left_u or frame.left_v)) or (right is None and (frame.right_u or frame.right_v)):
        return False
    if left is not None and right is not None and right[1]:  # a dense weight would be folded on both sides
        return False
    pairs = [pair for pair in (left, right and right[0]) if pair is not None]
    return not pairs or (layout.columns == 2 and all(map(is_fast, pairs)))


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
        for i, (matrix, codebook) in enumerate(zip(self._matrices, codebooks, strict=True)):
            before = zip(self._matrices[:i], codebooks, strict=False)
            same = (j for j, other in enumerate(before) if _share_tables(matrix, codebook, *other))
            matrix.tables = next(same, i)
        tensors = [tensor for _, _, tensor, _ in self.watched]
        self._kept: list[Any] = [codebooks, [t.detach() for t in tensors if t is not None]]  # whoever else lets go
        self._layer = LayerStruct(columns=self.columns, count=len(layers))
        self._layer.matrices = ctypes.addressof(self._matrices)
        self._add_bases(layers)
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
        if not self._layer.input.order:
            return (x if self._inverse is None else x.float() * self._inverse).to(dtype)
        a = x.new_empty(x.shape, dtype=dtype)
        work = x.numel() * int(math.log2(self.columns))
        arguments = (self.address, x.data_ptr(), NUMBERS[x.dtype], len(x), a.data_ptr(), NUMBERS[dtype])
        call("kquant_transform_first", *arguments, work=work)
        return a

    def many(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        """y (tokens, out_features) of the first layer, in `dtype`, from `coordinates` (tokens, in_features)."""
        return self._by_columns(a, dtype) if self._matrices[0].output.order else self._by_rows(a, dtype)

    def _by_rows(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        rows, out = self.rows[0], a.new_empty(len(a), self.rows[0])
        for begin, count in tiles(rows, self.columns):
            part = slice(begin * BLOCK_ROWS, min(rows, (begin + count) * BLOCK_ROWS))
            tile = a.new_empty(count * BLOCK_ROWS, self.columns)
            arguments = (self.address, begin, count, tile.data_ptr(), None, NUMBERS[a.dtype])
            call("kquant_dense_rows", *arguments, work=tile.numel())
            torch.mm(a, tile[: part.stop - part.start].T, out=out[:, part])
        if self._bias is not None:
            out += self._bias.detach()
        return out.to(dtype)

    def _by_columns(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        rows, step = self.rows[0], max(1, PANELS // (self.rows[0] * PANEL * a.itemsize)) * PANEL
        sums, y = a.new_empty(len(a), rows), a.new_empty(len(a), rows, dtype=dtype)
        for begin in range(0, self.columns, step):
            part = a[:, begin : begin + step]
            panels = a.new_empty(part.shape[1], rows)
            which = begin // PANEL, -(-len(panels) // PANEL)
            call("kquant_dense_columns", self.address, *which, panels.data_ptr(), NUMBERS[a.dtype], work=panels.numel())
            torch.addmm(sums, part, panels, beta=int(begin > 0), out=sums)
        arguments = (self.address, sums.data_ptr(), NUMBERS[a.dtype], len(a), y.data_ptr(), NUMBERS[dtype])
        call("kquant_transform_last", *arguments, work=y.numel() * int(math.log2(rows)))
        return y

    def _add_bases(self, layers: Sequence[InOneCall]) -> None:
        frames, scale = [layer.layout.frame for layer in layers], layers[0].shared_channel_scale()
        self._inverse = None if scale is None else scale.detach().float().reciprocal()
        self._layer.inverse = address(self._inverse)
        if (right := bases_of_loops(frames[0].right_u, frames[0].right_v)) is not None:
            self._layer.input = self._keep(loop_bases(*right))
        for matrix, frame in zip(self._matrices, frames, strict=True):
            if (left := CoupledBases.of(frame.left_u, frame.left_v)) is not None:
                matrix.output = self._keep(loop_bases(left, True))

    def _keep(self, bases: BasesStruct) -> BasesStruct:
        self._kept.append(bases)
        return bases


def _watched(layer: InOneCall) -> list[tuple[Any, str, Tensor | None, int]]:
    """Where the tensors stand that a call reads, and what and where they are."""
    names = ("weight_codebook", "weight_scale", "weight_col_scale", "weight_channel_scale", "bias")
    found = [(layer._parameters, name, layer._parameters[name]) for name in names if name in layer._parameters]
    found.append((layer.__dict__, "blocks", layer.blocks))  # new ones with every change of codes
    return [(place, name, tensor, 0 if tensor is None else tensor.data_ptr()) for place, name, tensor in found]


def _codebook(layer: InOneCall) -> Tensor:
    """The codebook; of a constant one without its exponent, so that layers that read one input share their tables."""
    constant = replace(layer.layout, exponent=0).grid_codebook(torch.device("cpu"))
    return layer.codebook.detach().float().contiguous() if constant is None else constant


def _share_tables(one: MatrixStruct, codebook: Tensor, other: MatrixStruct, of_other: Tensor) -> bool:
    """Whether two matrices make the same tables of one input; a scale of columns is each matrix's own."""
    scaled = one.col_scale is not None or other.col_scale is not None
    return not scaled and one.terms == other.terms and torch.equal(codebook, of_other)


def _matrix(layer: InOneCall, codebook: Tensor) -> MatrixStruct:
    scale, col_scale = (layer._parameters.get(name) for name in ("weight_scale", "weight_col_scale"))
    scale_dtype, bias_dtype, col_dtype = (
        0 if tensor is None else NUMBERS[tensor.dtype] for tensor in (scale, layer.bias, col_scale)
    )
    return MatrixStruct(
        blocks=address(layer.blocks),
        codebook=codebook.data_ptr(),
        scale=address(scale),
        bias=address(layer.bias),
        col_scale=address(col_scale),
        rows=layer.out_features,
        levels=layer.layout.levels,
        book_columns=layer.layout.columns,
        scales=0 if scale is None else scale.numel(),
        scale_dtype=scale_dtype,
        bias_dtype=bias_dtype,
        col_dtype=col_dtype,
        terms=1 if layer.layout.frame.left_u is None else 2,
        factor=math.ldexp(1.0, layer.layout.exponent),
    )


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype != torch.float32 and multiplies_bfloat16() else torch.float32
