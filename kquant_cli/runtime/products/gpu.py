"""The product on a CUDA device, by the kernels of triton_kernels.py: `gemv` for up to 4 tokens, `gemm` for more.

Nothing is read back from the device, and all sizes follow from shapes: a product can be captured in a CUDA graph. With
TRITON_INTERPRET=1 the same kernels run, slowly, on tensors of the CPU.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from kquant_cli.packing import word
from kquant_cli.runtime.products.packed import Packed

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GEMV_TOKENS = 4
GEMV_PROGRAMS = 12  # a multiprocessor: single warps of about 130 registers, so that all of them run at once
GEMM_PROGRAMS = 3  # a multiprocessor
INTERPRETED_MULTIPROCESSORS = 4
LEAST_STEPS = 4  # blocks of words that a program is worth starting for
WARP = 32  # tables of up to so many entries are looked up with shuffles, where a program is one warp
CHUNK = 8  # digits unrolled at a time
NARROW = 4  # bytes of a word whose digits all come off 32 bits; a wider one is cut in two, or later digits are wrong
PIPELINE = 64 * 1024  # bytes of shared memory for the activations of the next step
SUM_BLOCK = 256


@dataclass(frozen=True)
class Launch:
    """How a kernel runs: its grid, words a part, constants, and the compiler's options."""

    grid: tuple[int, int, int]  # blocks of rows, parts of the words, blocks of tokens
    part: int
    block_tokens: int  # 0: the kernel for few tokens
    block_rows: int
    block_words: int
    chunk: int
    chunks: int
    table: int
    warps: int
    stages: int


def supports(packed: Packed, a: Tensor, split: bool) -> bool:
    """16- and 32-bit floats on a CUDA device with Triton, or interpreted."""
    if a.dtype not in DTYPES or not a.numel() or not packed.rows or packed.blocks is not None:
        return False
    return (a.is_cuda or (a.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")) and _has_gather()


def product(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    """The sums with a and b (tokens, columns), each (tokens, rows); their sum and None unless `split`.

    b is None where the codebook has one column. Sums are float32, results have the dtype of a.
    """
    from kquant_cli.runtime.products import triton_kernels as kernels  # noqa: PLC0415

    two = b is not None and packed.codebook.shape[1] == 2
    split = split and two
    tokens = len(a)
    launch = plan(
        packed.rows, packed.columns, packed.levels, tokens, two + split, a.element_size(), _multiprocessors(a.device)
    )
    parts = launch.grid[1]
    out = a.new_empty(2 if split else 1, tokens, packed.rows)
    partial = out if parts == 1 else a.new_empty(parts, *out.shape, dtype=torch.float32)
    scale = packed.codebook if packed.group_scale is None else packed.group_scale
    tensors = (packed.codes, packed.codebook.float(), scale, a, a if b is None else b)
    values = constants(packed.levels, two, split, 0 if packed.group_scale is None else packed.group, tokens, launch)
    sizes = {"rows": packed.rows, "columns": packed.columns, "part": launch.part, "groups": scale.shape[1]}
    sizes |= {"words": -(-packed.columns // word(packed.levels)[0])}
    if launch.block_tokens:
        # The interpreter takes a product of bfloat16 for one of the integers that hold them.
        sizes |= {"tokens": tokens, "widen": not a.is_cuda and a.dtype == torch.bfloat16}
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    kernel = kernels.gemm if launch.block_tokens else kernels.gemv
    with torch.cuda.device(a.device) if a.is_cuda else nullcontext():
        kernel[launch.grid](*(t.contiguous() for t in tensors), partial, **sizes, **values, **options)
        if parts > 1:
            count = out.numel()
            kernels.sum_parts[(-(-count // SUM_BLOCK),)](partial, out, count, parts, block=SUM_BLOCK)
    return out[0], out[1] if split else None


def plan(rows: int, columns: int, levels: int, tokens: int, terms: int, itemsize: int, multiprocessors: int) -> Launch:
    """Tiles and grid of a product; `terms` is 1 for one column of the codebook, 2 for two, 3 for two apart.

    Where the blocks of rows and tokens alone leave the device idle, rows are cut into parts.
    """
    digits, size = word(levels)
    few, half = tokens <= GEMV_TOKENS, itemsize == 2
    chunks = -(-digits // (CHUNK if few or half else CHUNK // 2))
    chunks = max(chunks, 1 if size <= NARROW else 2)
    chunk = -(-digits // chunks)
    table = 1 << (levels - 1).bit_length()
    if few:
        sums = tokens * (2 if terms == 3 else 1)
        warps = 1 if table <= WARP else 4
        block_tokens, block_rows = 0, 8 if sums > 4 or (sums > 1 and chunk > 4) else 16  # more would spill registers
        block_words = warps * (64 if sums <= 2 and chunk <= 2 else 32)
        programs, token_blocks, stages = GEMV_PROGRAMS, 1, 1
    else:
        most = 32 if not half else 128 if terms < 3 else 64  # float32 has no matrix unit: its tiles are in registers
        block_tokens = min(most, max(16, 1 << (tokens - 1).bit_length()))
        block_rows, warps = (128, 8) if block_tokens == 128 else (64, 4 if half else 8)
        block_words = 64 if half and chunk <= 2 and block_tokens < 128 else 32
        programs, token_blocks = GEMM_PROGRAMS, -(-tokens // block_tokens)
        ahead = block_tokens * block_words * itemsize * min(terms, 2) * chunk
        stages = 2 if 2 * ahead <= PIPELINE else 1
    words = -(-columns // digits)
    row_blocks = -(-rows // block_rows)
    parts = programs * multiprocessors // (row_blocks * token_blocks)
    parts = max(1, min(parts, words // (LEAST_STEPS * block_words)))
    part = -(-words // (parts * block_words)) * block_words
    grid = (row_blocks, -(-words // part), token_blocks)
    return Launch(grid, part, block_tokens, block_rows, block_words, chunk, chunks, table, warps, stages)


def constants(levels: int, two: bool, split: bool, group: int, tokens: int, launch: Launch) -> dict[str, Any]:
    """What the kernel is compiled for, by the names of its constants; `group` is 0 where there are no group scales."""
    values: dict[str, Any] = {"levels": levels, "size": word(levels)[1], "two": two, "split": split, "group": group}
    values |= {name: getattr(launch, name) for name in ("table", "chunk", "chunks", "block_rows", "block_words")}
    return values | ({"block_tokens": launch.block_tokens} if launch.block_tokens else {"tokens": tokens})


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _has_gather() -> bool:
    """Triton is there, and new enough to look a table up in registers."""
    if not find_spec("triton"):
        return False
    import triton.language as tl  # noqa: PLC0415

    return hasattr(tl, "gather")
