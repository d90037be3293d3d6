"""Codes of up to 16 levels laid out for byte look-ups on a CPU (native/blocks.h has the layout), and packed rows again.

A matrix takes the bytes that it takes in a bundle, but for 9 to 15 levels, whose codes are 4 bits, and for rows that
are no multiple of 64. What a model's matrices need is allocated at once, in large pages where the system grants them:
a token reads all of it, and the time of a decoded token is that of reading.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate

import torch
from torch import Tensor

from kquant_cli.packing import pack, word
from kquant_cli.runtime.layer_loops import call, loops

MOST_LEVELS = 16
ALIGNMENT = 64


def supports(levels: int) -> bool:
    """Whether codes of so many levels can be laid out: there is a compiler, and no other backend is asked for."""
    return levels <= MOST_LEVELS and not os.environ.get("KQUANT_BACKEND") and loops() is not None


def size(rows: int, columns: int, levels: int) -> int:
    """Bytes of a matrix."""
    return int(loops().kquant_blocks_size(rows, columns, levels))


def space(sizes: Sequence[int]) -> list[Tensor]:
    """Zeros of these sizes, uint8, one after the other in one piece of memory."""
    begins = [0, *accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(begins[-1], 1), **private)
    with suppress(AttributeError, OSError):  # not on this system, or not for this process
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return [whole[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]


def to_blocks(codes: Tensor, levels: int, columns: int, out: Tensor | None = None) -> Tensor:
    """The blocks of packed codes (rows, row_bytes); `out` are zeros of `size` bytes, by default new ones."""
    rows, codes = len(codes), codes.contiguous()
    if out is None:
        (out,) = space([size(rows, columns, levels)])
    arguments = (codes.data_ptr(), rows, columns, levels, *word(levels), out.data_ptr())
    call("kquant_to_blocks", *arguments, work=rows * columns)
    return out


def codes_of(blocks: Tensor, rows: int, columns: int, levels: int, begin: int = 0, end: int | None = None) -> Tensor:
    """The codes (end - begin, columns), uint8, of rows begin to end of a matrix of so many rows."""
    end = rows if end is None else min(end, rows)
    codes = torch.empty(end - begin, columns, dtype=torch.uint8)
    loops().kquant_from_blocks(blocks.data_ptr(), rows, columns, levels, begin, end, codes.data_ptr())
    return codes


def to_rows(blocks: Tensor, rows: int, columns: int, levels: int) -> Tensor:
    """The packed codes again."""
    return pack(codes_of(blocks, rows, columns, levels), levels)
