"""Many tokens on a CUDA device: the weight is decoded into one layer's buffer, and the rest is a dense product.

    y = x W^T + bias,    W = diag(s) (Cu[codes] S A^T + Cv[codes] S B^T) diag(1 / d)        (triton_dense.py decodes)

To decode takes the same time for any number of tokens, and then each costs what it costs a dense model: no transforms
of the activations, no products of decoded tiles. It is for coupled bases on the input side; dense_output.py has the
other.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

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

    def constants(self) -> dict[str, bool]:
        """Which there are, as the kernels call it."""
        return {f"{name}_scaled": scale is not None for name, scale in self._asdict().items()}

    def pointers(self, none: Tensor) -> list[Tensor]:
        """All, with `none` for those that are not there."""
        return [none if scale is None else scale.contiguous() for scale in self]

    @property
    def step(self) -> int:
        """From the scale of a row to that of the next."""
        return 0 if self.row is None or len(self.row) == 1 else 1


class Tables(NamedTuple):
    """What the kernels read of a frame; a row, or a column, is a matrix (P, Q)."""

    hadamard: Tensor  # (P, P), +-1, float16
    inner: Tensor  # (padded, padded), G in its first Q rows and columns, float16
    first: Tensor  # (P Q,) signs, int8
    second: Tensor  # (P Q,)
    sizes: dict[str, int]  # P, Q, padded, as the kernels call them
    root: float  # 1 / sqrt(2^k)

    @property
    def warps(self) -> int:
        """Of a program that has a matrix (P, padded)."""
        return max(1, min(MOST_WARPS, self.sizes["P"] * self.sizes["padded"] // TILE_PER_WARP))


class Draw(NamedTuple):
    """A matrix of random codes and scales, for a trial."""

    packed: Packed
    scales: Scales
    u: Tensor  # (rows, columns), float64: the terms, with the column scale
    v: Tensor
    factors: Tensor  # the other scales


def supports(pair: CoupledBases, packed: Packed, x: Tensor, scales: Scales) -> bool:
    """16-bit activations, both columns of the codebook, no group scales, and a size that is a matrix of small sides.

    On a CUDA device with Triton, or interpreted; and only where the kernel has passed its trial there.
    """
    if not takes(packed, x) or not sides(pair.size):
        return False
    there = tuple(scale is not None for scale in scales)
    key = ("decode_rows", x.device, pair.size, packed.levels, x.dtype, *there)
    return find_spec("triton") is not None and passed(
        key, lambda: _trial(pair, packed.levels, x, there), BOUNDS[x.dtype]
    )


def takes(packed: Packed, x: Tensor) -> bool:
    """Whether there are kernels for activations and a matrix like these, whatever their sizes."""
    plain = packed.group_scale is None and packed.codebook.shape[1] == 2 and packed.codebook.dtype == torch.float32
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return plain and x.dtype in DTYPES and packed.rows > 0 and (x.is_cuda or interpreted)


def _trial(pair: CoupledBases, levels: int, x: Tensor, there: tuple[bool, ...]) -> float:
    """The relative error of a few rows of random codes, with the scales that are there."""
    packed, scales, u, v, factors = drawn(levels, (TRIAL_ROWS, pair.size), x.device, there)
    expected = (basis_for(pair.first).apply(u) + basis_for(pair.second).apply(v)) * factors
    return relative_error(decode(pair, packed, x.dtype, scales).cpu(), expected)


def drawn(levels: int, shape: tuple[int, int], device: torch.device, there: tuple[bool, ...]) -> Draw:
    """Codes of a shape on a device, and the scales that are there; the terms and factors on the CPU."""
    draw = torch.Generator().manual_seed(levels)
    codes = torch.randint(levels, shape, generator=draw, dtype=torch.uint8)
    codebook = torch.randn(levels, 2, generator=draw)
    row, column, channel = (
        torch.rand(n, generator=draw) + 0.5 if wanted else torch.ones(n)
        for n, wanted in zip((shape[0], shape[1], shape[1]), there, strict=True)
    )
    u, v = (codebook.double()[codes.int()] * column.unsqueeze(1)).unbind(-1)
    packed = Packed(pack(codes, levels).to(device), codebook.to(device), shape[1])
    given = zip((row.unsqueeze(1), column, channel), there, strict=True)
    scales = Scales(*(scale.to(device) if wanted else None for scale, wanted in given))
    return Draw(packed, scales, u, v, row.unsqueeze(1) / channel.double())


def decode(pair: CoupledBases, packed: Packed, dtype: torch.dtype, scales: Scales) -> Tensor:
    """W (rows, columns) in `dtype`, a 16-bit float, of a matrix that `supports` has said yes to."""
    from kquant_cli.runtime.products.triton_dense import decode_rows  # noqa: PLC0415

    device = packed.codes.device
    tables, (digits, _) = tables_of(pair, device), word(packed.levels)
    out = torch.empty(packed.rows, packed.columns, dtype=dtype, device=device)
    with on_device(device):
        decode_rows[(min(packed.rows, programs(device)),)](
            packed.codes.contiguous(),
            powers(packed.levels, device),
            packed.codebook.contiguous(),
            *tables[:4],
            *scales.pointers(tables.first),
            out,
            packed.rows,
            -(-packed.columns // digits),
            scales.step,
            tables.root,
            digits=digits,
            **formats(packed.levels),
            **tables.sizes,
            **scales.constants(),
            num_stages=1,  # more would need more shared memory than there is
            num_warps=tables.warps,
        )
    return out


def formats(levels: int) -> dict[str, int]:
    """How codes are stored, and the length of a table of them, as the kernels call it."""
    bits = levels.bit_length() - 1
    table = 1 << (levels - 1).bit_length()
    return {"levels": levels, "table": table, "bits": bits if levels == 1 << bits else 0, "size": word(levels)[1]}


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sides(size: int) -> tuple[int, int] | None:
    """(P, Q) with size = P Q, P a power of two, for the fewest multiplications; None where a side would be too long."""
    powers = (1 << k for k in range(LEAST.bit_length() - 1, MOST.bit_length()))
    fitting = [(p, size // p) for p in powers if size % p == 0 and size // p <= MOST]
    return min(fitting, key=lambda pq: pq[0] * _padded(pq[1]) * (pq[0] + _padded(pq[1])), default=None)


def _padded(q: int) -> int:
    return max(LEAST, 1 << (q - 1).bit_length())


@lru_cache(KEPT)
def tables_of(pair: CoupledBases, device: torch.device) -> Tables:
    """The tables on a device, of a size that has `sides`."""
    two, (power, order) = sides(pair.size), power_and_order(pair.size)
    assert two is not None
    P, Q = two
    inner = torch.kron(torch.from_numpy(sylvester((Q // order).bit_length() - 1)).double(), dct_matrix(order))
    padding = _padded(Q) - Q
    with torch.inference_mode(False):  # kept for later calls
        first, second = (draw.to(device, torch.int8) for draw in two_sign_draws(pair.seed, pair.size))
        return Tables(
            torch.from_numpy(sylvester(P.bit_length() - 1)).to(device, torch.float16),
            torch.nn.functional.pad(inner, (0, padding, 0, padding)).to(device, torch.float16),
            first,
            second,
            {"P": P, "Q": Q, "padded": Q + padding},
            1 / math.sqrt(power),
        )


@lru_cache(KEPT)
def powers(levels: int, device: torch.device) -> Tensor:
    """levels^digit, int64."""
    return torch.tensor([levels**digit for digit in range(word(levels)[0])], device=device)


@lru_cache(KEPT)
def programs(device: torch.device) -> int:
    """Of a launch whose programs take many rows each."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
