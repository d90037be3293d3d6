"""The product of codes in blocks on a CPU (blocks.py): few tokens by byte look-ups, many by decoded tiles.

For up to FEW tokens native/lookup.h makes a table of 16 numbers for each column, and looks it up with the codes. For
more a tile of rows is decoded and multiplied by torch.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kquant_cli.runtime.layer_loops import LayerStruct, MatrixStruct, address, call
from kquant_cli.runtime.products.packed import Packed

FEW = 24  # tokens up to which look-ups take no longer than decoding; measured by scripts/bench_product.py
TILE = 2**20  # numbers of a decoded tile
BLOCK_ROWS = 64


def supports(packed: Packed, a: Tensor, split: bool) -> bool:
    """float32 on a CPU, codes in blocks."""
    on_cpu = packed.blocks is not None and a.device.type == "cpu"
    return on_cpu and a.dtype == torch.float32 and packed.group_scale is None


def product(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    """The sums with a and b (tokens, columns), each (tokens, rows); their sum and None unless `split`.

    b is None where the codebook has one column.
    """
    if len(a) > FEW:
        return _by_tiles(packed, a, b, split)
    return _few(packed, a, b, split and b is not None)


def _few(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    out, codebook = a.new_empty(1 + split, len(a), packed.rows), packed.codebook.float().contiguous()
    a, b = a.contiguous(), None if b is None else b.contiguous()
    matrix = _matrix(packed, codebook)
    matrix.terms += split
    layer = LayerStruct(columns=packed.columns, count=1, matrices=ctypes.addressof(matrix))
    work = len(a) * packed.rows * packed.columns
    call(
        "kquant_product_of_blocks",
        *(ctypes.addressof(layer), a.data_ptr(), address(b), len(a), out.data_ptr()),
        work=work,
    )
    return out[0], out[1] if split else None


def _by_tiles(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    first = a.new_empty(len(a), packed.rows)
    second = torch.empty_like(first) if split and b is not None else None
    codebook = packed.codebook.float().contiguous()
    matrix = _matrix(packed, codebook)
    layer = LayerStruct(columns=packed.columns, count=1, matrices=ctypes.addressof(matrix))
    for begin, count in tiles(packed.rows, packed.columns):
        rows = slice(begin * BLOCK_ROWS, min(packed.rows, (begin + count) * BLOCK_ROWS))
        u, v = a.new_empty(2, count * BLOCK_ROWS, packed.columns)
        arguments = (ctypes.addressof(layer), begin, count, u.data_ptr(), None if b is None else v.data_ptr(), 0)
        call("kquant_dense_rows", *arguments, work=u.numel())
        kept = rows.stop - rows.start
        torch.mm(a, u[:kept].T, out=first[:, rows])
        if second is not None and b is not None:
            torch.mm(b, v[:kept].T, out=second[:, rows])
        elif b is not None:
            first[:, rows] += b @ v[:kept].T
    return first, second


def tiles(rows: int, columns: int) -> list[tuple[int, int]]:
    """The first block and the number of blocks of each tile."""
    blocks = -(-rows // BLOCK_ROWS)
    step = max(2, TILE // (columns * BLOCK_ROWS))
    return [(begin, min(step, blocks - begin)) for begin in range(0, blocks, step)]


def _matrix(packed: Packed, codebook: Tensor) -> MatrixStruct:
    return MatrixStruct(
        blocks=address(packed.blocks),
        codebook=codebook.data_ptr(),
        rows=packed.rows,
        levels=packed.levels,
        book_columns=codebook.shape[1],
        terms=1,
        factor=1.0,
    )
