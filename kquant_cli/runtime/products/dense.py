"""Many tokens on a CUDA device: the weight is decoded into one layer's buffer, and the rest is a dense product.

    y = x W^T + bias,    W = diag(s) (Cu[codes] S A^T + Cv[codes] S B^T) diag(1 / d)        (triton_dense.py decodes)

To decode takes the same time for any number of tokens, and then each costs what it costs a dense model: no transforms
of the activations, no products of decoded tiles. It is for the annealed encoder's frame, with no bases on the left.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.bases.dct import dct_matrix
from kquant_cli.bases.hadamard import sylvester
from kquant_cli.bases.hadamard_dct import power_and_order, two_sign_draws
from kquant_cli.packing import pack, word
from kquant_cli.runtime.products.packed import Packed
from kquant_cli.runtime.products.trial import passed, relative_error

DENSE_TOKENS = 128  # from which on a layer is decoded: an estimate from the bytes moved, not measured on a GPU
DTYPES = (torch.float16, torch.bfloat16)
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 8e-3}  # of the trial; 5e-4 and 2e-3 are expected
TRIAL_ROWS = 8
LEAST, MOST = 16, 128  # sides of the matrix that a row is; the matrix units take no fewer, shared memory no more
PROGRAMS = 2  # a multiprocessor
INTERPRETED_PROGRAMS = 2
TILE_PER_WARP = 1024  # numbers of a row that a warp works on
MOST_WARPS = 8
KEPT = 32  # sizes and seeds whose tables stay in memory


class Scales(NamedTuple):
    """The scales of a matrix (rows, columns), of any float dtype; None: ones."""

    row: Tensor | None = None  # s (rows, 1) or (1, 1)
    column: Tensor | None = None  # S (columns,), in the coordinates of the bases
    channel: Tensor | None = None  # d (columns,)


class RowTables(NamedTuple):
    """What the kernel reads of a frame; a row is a matrix (P, Q)."""

    hadamard: Tensor  # (P, P), +-1, float16
    inner: Tensor  # (padded, padded), G in its first Q rows and columns, float16
    first: Tensor  # (P Q,) signs, int8
    second: Tensor  # (P Q,)


def supports(pair: CoupledBases, packed: Packed, x: Tensor, scales: Scales) -> bool:
    """16-bit activations, both columns of the codebook, no group scales, and a size that is a matrix of small sides.

    On a CUDA device with Triton, or interpreted; and only where the kernel has passed its trial there.
    """
    plain = packed.group_scale is None and packed.codebook.shape[1] == 2 and packed.codebook.dtype == torch.float32
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (plain and x.dtype in DTYPES and packed.rows and sides(pair.size) and (x.is_cuda or interpreted)):
        return False
    there = tuple(scale is not None for scale in scales)
    key = ("decode_rows", x.device, pair.size, packed.levels, x.dtype, *there)
    return find_spec("triton") is not None and passed(
        key, lambda: _trial(pair, packed.levels, x, there), BOUNDS[x.dtype]
    )


def _trial(pair: CoupledBases, levels: int, x: Tensor, there: tuple[bool, ...]) -> float:
    """The relative error of a few rows of random codes, with the scales that are there."""
    draw = torch.Generator().manual_seed(levels)
    codes = torch.randint(levels, (TRIAL_ROWS, pair.size), generator=draw, dtype=torch.uint8)
    codebook = torch.randn(levels, 2, generator=draw)
    row, column, channel = (
        torch.rand(n, generator=draw) + 0.5 if wanted else torch.ones(n)
        for n, wanted in zip((TRIAL_ROWS, pair.size, pair.size), there, strict=True)
    )
    u, v = (codebook.double()[codes.int()] * column.unsqueeze(1)).unbind(-1)
    expected = (basis_for(pair.first).apply(u) + basis_for(pair.second).apply(v)) * row.unsqueeze(1) / channel
    packed = Packed(pack(codes, levels).to(x.device), codebook.to(x.device), pair.size)
    given = zip((row.unsqueeze(1), column, channel), there, strict=True)
    scales = Scales(*(scale.to(x.device) if wanted else None for scale, wanted in given))
    return relative_error(decode(pair, packed, x.dtype, scales).cpu(), expected)


def decode(pair: CoupledBases, packed: Packed, dtype: torch.dtype, scales: Scales) -> Tensor:
    """W (rows, columns) in `dtype`, a 16-bit float, of a matrix that `supports` has said yes to."""
    from kquant_cli.runtime.products.triton_dense import decode_rows  # noqa: PLC0415

    device = packed.codes.device
    tables, powers = _tables(pair, device), _powers(packed.levels, device)
    (P, Q), padded = _two_sides(pair.size), len(tables.inner)
    digits, size = word(packed.levels)
    bits = packed.levels.bit_length() - 1
    out = torch.empty(packed.rows, packed.columns, dtype=dtype, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        decode_rows[(min(packed.rows, _programs(device)),)](
            packed.codes.contiguous(),
            powers,
            packed.codebook.contiguous(),
            *tables,
            *(tables.first if scale is None else scale.contiguous() for scale in scales),
            out,
            packed.rows,
            -(-packed.columns // digits),
            0 if scales.row is None or len(scales.row) == 1 else 1,
            1 / math.sqrt(power_and_order(pair.size)[0]),
            levels=packed.levels,
            table=1 << (packed.levels - 1).bit_length(),
            bits=bits if packed.levels == 1 << bits else 0,
            digits=digits,
            size=size,
            P=P,
            Q=Q,
            padded=padded,
            row_scaled=scales.row is not None,
            column_scaled=scales.column is not None,
            channel_scaled=scales.channel is not None,
            num_stages=1,  # more would need more shared memory than there is
            num_warps=max(1, min(MOST_WARPS, P * padded // TILE_PER_WARP)),
        )
    return out


def sides(size: int) -> tuple[int, int] | None:
    """(P, Q) with size = P Q, P a power of two, for the fewest multiplications; None where a side would be too long."""
    powers = (1 << k for k in range(LEAST.bit_length() - 1, MOST.bit_length()))
    fitting = [(p, size // p) for p in powers if size % p == 0 and size // p <= MOST]
    return min(fitting, key=lambda pq: pq[0] * _padded(pq[1]) * (pq[0] + _padded(pq[1])), default=None)


def _two_sides(size: int) -> tuple[int, int]:
    found = sides(size)
    assert found is not None
    return found


def _padded(q: int) -> int:
    return max(LEAST, 1 << (q - 1).bit_length())


@lru_cache(KEPT)
def _tables(pair: CoupledBases, device: torch.device) -> RowTables:
    (P, Q), (_, order) = _two_sides(pair.size), power_and_order(pair.size)
    inner = torch.kron(torch.from_numpy(sylvester((Q // order).bit_length() - 1)).double(), dct_matrix(order))
    padding = _padded(Q) - Q
    with torch.inference_mode(False):  # kept for later calls
        return RowTables(
            torch.from_numpy(sylvester(P.bit_length() - 1)).to(device, torch.float16),
            torch.nn.functional.pad(inner, (0, padding, 0, padding)).to(device, torch.float16),
            *(draw.to(device, torch.int8) for draw in two_sign_draws(pair.seed, pair.size)),
        )


@lru_cache(KEPT)
def _powers(levels: int, device: torch.device) -> Tensor:
    """levels^digit, int64."""
    return torch.tensor([levels**digit for digit in range(word(levels)[0])], device=device)


@lru_cache(KEPT)
def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
