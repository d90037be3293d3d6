"""One to eight tokens on a CUDA device of compute capability 9.0 or newer, by the kernels of native/cuda.

    input side:   y = scale step (u[codes] a + v[codes] b) + bias                          (look_up.py, product.cu)
    output side:  y = scale A (p + Q q) + bias,   p = step u[codes] z,   q = step v[codes] z            (outputs.cu)

Two launches: `activations` makes a and b of x and leaves them as the product multiplies them, once for all layers that
read x; `product` reads the codes and writes y. On the output side there is one z, in the one right basis of both terms,
the product leaves p and q apart, and a third launch, `outputs`, makes y of them. For 2, 4, 8, ... 256 levels; other
numbers of levels are Triton's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kquant_cli.bases import CoupledBases
from kquant_cli.native.cuda_launch import Launcher, launcher_for
from kquant_cli.packing import word
from kquant_cli.runtime.products.look_up import TABLE, LookUp, look_up
from kquant_cli.runtime.products.packed import Packed

TOKENS = (1, 2, 4, 8)  # that the product is compiled for
DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}  # as numbers.cuh numbers them
NONE = 0
NARROW = (torch.float16, torch.bfloat16)
STEP = 64  # words of a row that a warp takes at a time
ALIGNED = 16  # bytes that a copy begins at
LEAST_POWER = 32  # of two, in a size: 8 blocks, and 4 rows of C at a time
MOST_COLUMNS, MOST_ORDER = 32768, 128  # of what the transform's blocks and its matrix C have room for
CLUSTER, TRANSFORM_THREADS = 8, 512
FLOAT_TOKENS = 128  # that `floats` takes in one launch; for more torch's operations are long enough (not measured)
KEPT = 64  # sizes and seeds whose tables stay on a device


class Activations(NamedTuple):
    """What the product reads of x: integers or float16 as bytes, and a scale of each of the `tokens`."""

    bytes: Tensor
    scales: Tensor
    tokens: int


class Plan(NamedTuple):
    """How a product is launched."""

    grid: int
    block: int  # threads
    parts: int
    shared: int


def transforms(pair: CoupledBases | None, x: Tensor, most: int = TOKENS[-1]) -> bool:
    """Whether the transform takes x (tokens, columns): up to `most` tokens in 16 bits, of a size it has room for.

    Without `pair` the transform is the identity.
    """
    size = x.shape[1]
    fits = has_room(pair) if pair is not None else size % LEAST_POWER == 0 and size <= MOST_COLUMNS
    return fits and x.dtype in NARROW and 0 < len(x) <= most and launcher_for(x.device) is not None


def has_room(pair: CoupledBases) -> bool:
    """Whether the kernels' blocks have room for the transform, and their threads something to do."""
    power = pair.size & -pair.size
    return power >= LEAST_POWER and pair.size <= MOST_COLUMNS and pair.size // power <= MOST_ORDER


def look_up_of(packed: Packed) -> LookUp | None:
    """The look-up of a matrix, on its device; None where the kernel cannot take the matrix.

    The codebook is read from the device at the first call for it, which waits for the device; while a CUDA graph is
    captured, what was not read before is not.
    """
    book, digits = packed.codebook, word(packed.levels)[0]
    words = packed.columns // digits
    if packed.levels & (packed.levels - 1) or book.shape[1] != 2 or packed.group_scale is not None or not packed.rows:
        return None
    if (
        packed.columns % digits
        or words % ALIGNED
        or not packed.codes.is_contiguous()
        or packed.codes.data_ptr() % ALIGNED
    ):
        return None
    state = (book.data_ptr(), None if book.is_inference() else book._version)
    known = _look_ups.get(book)
    if known is None or known[0] != state:
        if book.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        found = look_up(book.detach().cpu())
        known = _look_ups[book] = (state, found and found._replace(table=found.table.to(book.device)))
    return known[1]


_look_ups: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def floats(pair: CoupledBases, x: Tensor, channel_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """a and b (tokens, columns) in x's dtype, of x that `transforms` has said yes to; channel_scale (columns,)."""
    a, b = torch.empty_like(x), torch.empty_like(x)
    _transform(pair, x, channel_scale, None, (0, a, b, None, None), 0, False)
    return a, b


def prepared(
    pair: CoupledBases | None,
    x: Tensor,
    channel_scale: Tensor | None,
    digits: int,
    column_scale: Tensor | None = None,
    split: bool = False,
) -> Activations:
    """The same for the product, for a look-up's `digits`, and times column_scale (columns,).

    With `split` a alone, for u and for v; without `pair`, which is then allowed, it is x / channel_scale.
    """
    steps, tokens = -(-(x.shape[1] // abs(digits)) // STEP), padded(len(x))
    numbers = x.new_empty(steps * STEP * _bytes_a_word(abs(digits), tokens, split), dtype=torch.int8)
    scales = x.new_empty(tokens, dtype=torch.float32)
    _transform(pair, x, channel_scale, column_scale, (digits, None, None, numbers, scales), tokens, split)
    return Activations(numbers, scales, len(x))


def _transform(
    pair: CoupledBases | None,
    x: Tensor,
    channel_scale: Tensor | None,
    column_scale: Tensor | None,
    outputs: tuple[int | Tensor | None, ...],
    tokens: int,
    split: bool,
) -> None:
    size = x.shape[1]
    (power, order), tables = ((1, 1), (None,) * 4) if pair is None else _tables(pair, x.device)
    arguments = (
        *(*_number(x), *_number(channel_scale), *tables),
        *(*_number(column_scale), *outputs),
        *(size, power.bit_length() - 1, order, tokens),
    )
    shared, defines = 4 * (3 * size // CLUSTER + 128) + _matrices(order), {"THE_SPLIT": int(split)}
    _launcher(x).launch("activations", defines, CLUSTER * len(x), TRANSFORM_THREADS, shared, arguments)


def _transform_outputs(pair: CoupledBases, sums: Tensor, scale: Tensor | None, bias: Tensor | None, y: Tensor) -> None:
    """y (tokens, rows) of p and q, sums (tokens, 2, rows)."""
    (power, order), tables = _tables(pair, sums.device)
    arguments = (
        *(sums, *tables),
        *(*_row_scale(scale), *_number(bias), *_number(y)),
        *(pair.size, power.bit_length() - 1, order),
    )
    shared = 4 * (2 * pair.size // CLUSTER) + _matrices(order)
    _launcher(sums).launch("outputs", {}, CLUSTER * len(sums), TRANSFORM_THREADS, shared, arguments)


def product(
    packed: Packed,
    found: LookUp,
    of_x: Activations,
    scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    left: CoupledBases | None = None,
) -> Tensor:
    """y (tokens, rows) in `dtype`; scale (rows, 1) or (1, 1) and bias (rows,), or None.

    On the output side, in the bases of `left`, of activations that were `prepared` with `split`.
    """
    y = torch.empty(of_x.tokens, packed.rows, dtype=dtype, device=packed.codes.device)
    if left is None:
        _multiply(packed, found, of_x, scale, bias, y, False)
    else:
        sums = y.new_empty(of_x.tokens, 2, packed.rows, dtype=torch.float32)
        _multiply(packed, found, of_x, None, None, sums, True)
        _transform_outputs(left, sums, scale, bias, y)
    return y


def _multiply(
    packed: Packed,
    found: LookUp,
    of_x: Activations,
    scale: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    split: bool,
) -> None:
    columns = padded(of_x.tokens)
    planned = plan(packed.rows, packed.columns, found, columns, packed.codes.device, split)
    assert planned is not None
    arguments = (
        *(packed.codes, found.table, of_x.bytes, of_x.scales),
        *(*_row_scale(scale), *_number(bias), *_number(y)),
        *(packed.rows, packed.columns // word(packed.levels)[0], planned.parts, of_x.tokens, found.step),
    )
    defines = {"THE_KIND": found.kind, "TOKENS": columns, "THE_SPLIT": int(split)}
    _launcher(packed.codes).launch("product", defines, planned.grid, planned.block, planned.shared, arguments)


def plan(rows: int, columns: int, found: LookUp, tokens: int, device: torch.device, split: bool = False) -> Plan | None:
    """One block a multiprocessor, and the activations in as few parts as shared memory allows; None: there is none."""
    launcher = launcher_for(device)
    if launcher is None:
        return None
    digits, planes = word(1 << found.bits)
    tiles, stages = (2, 4) if planes == 1 else (1, 3)  # these three as in product.cu
    warps = 8 if planes > 3 else 16
    steps = -(-columns // digits // STEP)
    blocks_of_rows = -(-rows // (16 * tiles))
    grid = min(blocks_of_rows, launcher.multiprocessors)
    table = 128 << found.bits if found.kind > TABLE else 0
    ring = 128 + table + warps * stages * planes * 2 * tiles * 512
    sums = -(-blocks_of_rows // grid) * 16 * tiles * 8 * tokens * (2 if split else 1)
    step = STEP * _bytes_a_word(digits, tokens, split)
    most = (launcher.shared - ring - sums) // step
    if most < 1:
        return None
    parts = -(-steps // most)
    return Plan(grid, 32 * warps, parts, ring + sums + -(-steps // parts) * step)


def _number(x: Tensor | None) -> tuple[Tensor | None, int]:
    """A tensor and its dtype, as numbers.cuh takes them; of other dtypes a float32 copy."""
    if x is None:
        return None, NONE
    known = x.contiguous() if x.dtype in DTYPES else x.float().contiguous()
    return known, DTYPES[known.dtype]


def _row_scale(scale: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The scale of rows, its dtype, and the step from one row's to the next."""
    return *_number(scale), 0 if scale is None or len(scale) == 1 else 1


def _bytes_a_word(digits: int, tokens: int, split: bool) -> int:
    """Of activations: a and b, with `split` a alone, two bytes each, for `digits` columns."""
    return (2 if split else 4) * digits * tokens


def _matrices(order: int) -> int:
    """Bytes of C and its transpose."""
    return 8 * order**2 if order > 1 else 0


def padded(tokens: int) -> int:
    """The number of tokens that the kernel is compiled for."""
    return next(t for t in TOKENS if tokens <= t)


def _launcher(x: Tensor) -> Launcher:
    launcher = launcher_for(x.device)
    assert launcher is not None
    return launcher


@lru_cache(KEPT)
def _tables(pair: CoupledBases, device: torch.device) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
    """2^k and m; the signs, C and its transpose on the device."""
    tables = pair.loop_tables()
    assert tables is not None
    with torch.inference_mode(False):  # kept for later calls
        return tables[:2], tuple(table.to(device) for table in tables[2:])
