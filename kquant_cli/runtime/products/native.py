"""The product on a CPU by the loops of native/product.cpp: few tokens straight from the codes, many by decoded tiles.

A few tokens are multiplied in registers while the codes pass by once, so that what is read is the packed
matrix. More are worth a tile of rows decoded to float32 and a matrix product of torch's. So are scales of groups.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kquant_cli.native import library
from kquant_cli.packing import word
from kquant_cli.runtime.products.packed import Packed
from kquant_cli.runtime.torch_threads import parallel, threads_for

FEW, MANY = 32, 64  # tokens up to which decoding tiles is no faster, in general and where a look-up is a permutation
TILE = 2**18  # weights decoded at a time: u and v are 2 MiB
PERMUTED = (2, 4, 8, 16, 32)


def supports(packed: Packed, a: Tensor, split: bool) -> bool:
    """float32 on a CPU with a compiler."""
    return (
        packed.blocks is None
        and a.device.type == "cpu"
        and a.dtype == torch.float32
        and packed.codes.device.type == "cpu"
        and packed.codes.is_contiguous()
        and library("product") is not None
    )


def product(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    """The sums with a and b (tokens, columns), each (tokens, rows); their sum and None unless `split`.

    b is None where the codebook has one column.
    """
    if len(a) > (MANY if packed.levels in PERMUTED else FEW) or packed.group_scale is not None:
        return _by_tiles(packed, a, b, split)
    first = a.new_empty(len(a), packed.rows)
    second = torch.empty_like(first) if split and b is not None else None
    a, b = a.contiguous(), None if b is None else b.contiguous()
    work = len(a) * packed.rows * packed.columns
    arguments = (
        a.data_ptr(),
        None if b is None else b.data_ptr(),
        len(a),
        first.data_ptr(),
        None if second is None else second.data_ptr(),
    )
    _call("kquant_product", packed, packed.codes, arguments, work)
    return first, second


def _by_tiles(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    """A tile of rows [u v] is decoded, and multiplied with [a b] or, where `split`, with each."""
    first = a.new_empty(len(a), packed.rows)
    second = torch.empty_like(first) if split and b is not None else None
    if b is not None and second is None:
        a = torch.cat([a, b], dim=1)
    step = max(1, TILE // packed.columns)
    tile = a.new_empty(min(step, packed.rows), packed.codebook.shape[1] * packed.columns)
    scales = None if packed.group_scale is None else packed.group_scale.float().contiguous()
    for begin in range(0, packed.rows, step):
        rows = slice(begin, begin + step)
        codes = packed.codes[rows]
        part = tile[: len(codes)]
        scale, groups = (None, 0) if scales is None else (scales[rows].data_ptr(), scales.shape[1])
        _call("kquant_decode", packed, codes, (scale, packed.group, groups, part.data_ptr()), part.numel())
        if second is None or b is None:
            torch.mm(a, part.T, out=first[:, rows])
        else:
            torch.mm(a, part[:, : packed.columns].T, out=first[:, rows])
            torch.mm(b, part[:, packed.columns :].T, out=second[:, rows])
    return first, second


def _call(name: str, packed: Packed, codes: Tensor, arguments: tuple[int | None, ...], work: int) -> None:
    """Run a function of the library; MemoryError where it has no memory for the activations."""
    book = packed.codebook
    if book.dtype != torch.float32 or not book.is_contiguous():
        book = book.float().contiguous()
    digits, size = word(packed.levels)
    failed = _functions()[name](
        codes.data_ptr(),
        len(codes),
        packed.columns,
        packed.levels,
        digits,
        size,
        book.data_ptr(),
        book.shape[1],
        *arguments,
        threads_for(work),
        parallel(),
    )
    if failed:
        raise MemoryError("no memory for the activations of a product")


@cache
def _functions() -> dict[str, ctypes._CFuncPtr]:  # type: ignore[name-defined]
    """The library's functions, told their arguments' types."""
    pointer, number, whole = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    matrix: list[Any] = [pointer, number, number, whole, whole, whole, pointer, whole]
    loops = library("product")
    assert loops is not None
    loops.kquant_product.argtypes = [*matrix, pointer, pointer, number, pointer, pointer, whole, pointer]
    loops.kquant_decode.argtypes = [*matrix, pointer, number, number, pointer, whole, pointer]
    return {"kquant_product": loops.kquant_product, "kquant_decode": loops.kquant_decode}
