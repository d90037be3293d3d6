"""Many tokens on a CUDA device, for coupled bases on the output side: the weight is decoded, the rest a dense product.

    y = x W^T + bias,    W = diag(s) (A Cu[codes] + B Cv[codes]) S R^T diag(1 / d)

A and B go along the columns, which takes three passes over the weight (triton_dense_output.py), and R along the rows a
fourth, in one buffer: 10 or 14 bytes a weight are written and read, where dense.py writes 2. To apply A, or R, to the
activations instead would save one pass, 4 bytes a weight, and cost about 40 bytes a number of theirs: transforms in
float32, one of torch's operations after another. With a tenth as many tokens as columns, or rows, that is as much.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.packing import word
from kquant_cli.runtime.products import dense
from kquant_cli.runtime.products.dense import BOUNDS, TRIAL_ROWS, Scales, sides
from kquant_cli.runtime.products.packed import Packed
from kquant_cli.runtime.products.trial import passed, relative_error

DENSE_TOKENS = 256  # from which on a layer is decoded: twice dense.py's, for its passes; not measured on a GPU
TRIAL_COLUMNS = 48
BLOCK = 64  # columns of a program
LONG, WARPS, MOST_WARPS = 128, 4, 8  # a side from which on a program has more warps


def supports(left: CoupledBases, right: CoupledBases | None, packed: Packed, x: Tensor, scales: Scales) -> bool:
    """As `dense.supports`, for both sizes; the columns have a trial, and the rows another, where they have a basis."""
    sized = sides(left.size) and (right is None or sides(right.size))
    if not dense.takes(packed, x) or not sized or find_spec("triton") is None:
        return False
    levels, dtype, there = packed.levels, x.dtype, tuple(scale is not None for scale in scales)
    if right is None:
        key = ("decode_columns", x.device, left.size, levels, dtype, *there)
        return passed(key, lambda: _trial_of_columns(left, levels, x, there), BOUNDS[dtype])
    key = ("decode_columns", x.device, left.size, levels, torch.float16)
    if not passed(key, lambda: _trial_of_columns(left, levels, x, None), BOUNDS[torch.float16]):
        return False
    key = ("transform_rows", x.device, right.size, levels, dtype, *there)
    return passed(key, lambda: _trial_of_rows(right, levels, x, there), BOUNDS[dtype])


def _trial_of_columns(left: CoupledBases, levels: int, x: Tensor, there: tuple[bool, ...] | None) -> float:
    """The relative error of a few columns; `there` is None where the rows have a basis, and scales come with it."""
    packed, scales, u, v, factors = dense.drawn(levels, (left.size, TRIAL_COLUMNS), x.device, there or (False,) * 3)
    expected = basis_for(left.first).apply(u, dim=0) + basis_for(left.second).apply(v, dim=0)
    if there is None:
        rows = torch.empty(u.shape, dtype=torch.float16, device=x.device)
        _decode_columns(left, packed, rows, None)
        return relative_error(rows.cpu(), expected / packed.codebook.abs().max().cpu())
    return relative_error(decode(left, None, packed, x.dtype, scales).cpu(), expected * factors)


def _trial_of_rows(right: CoupledBases, levels: int, x: Tensor, there: tuple[bool, ...]) -> float:
    """The relative error of a few rows."""
    packed, scales, u, _, factors = dense.drawn(levels, (TRIAL_ROWS, right.size), x.device, there)
    column = 1.0 if scales.column is None else scales.column.double().cpu()
    rows = (u / column / packed.codebook.abs().max().cpu()).to(x.device, torch.float16)
    out = rows.view(x.dtype)
    _transform_rows(right, packed, rows, scales, out)
    return relative_error(out.cpu(), basis_for(right.first).apply(u) * factors)


def decode(
    left: CoupledBases, right: CoupledBases | None, packed: Packed, dtype: torch.dtype, scales: Scales
) -> Tensor:
    """W (rows, columns) in `dtype`, a 16-bit float, of a matrix that `supports` has said yes to."""
    out = torch.empty(packed.rows, packed.columns, dtype=dtype, device=packed.codes.device)
    if right is None:
        _decode_columns(left, packed, out, scales)
    else:
        rows = out.view(torch.float16)
        _decode_columns(left, packed, rows, None)
        _transform_rows(right, packed, rows, scales, out)
    return out


def _decode_columns(left: CoupledBases, packed: Packed, out: Tensor, scales: Scales | None) -> None:
    """A Cu[codes] + B Cv[codes] in `out`: with scales, or, where they are None, over the codebook's largest entry."""
    from kquant_cli.runtime.products import triton_dense_output as kernels  # noqa: PLC0415

    device, last, scales = out.device, scales is not None, scales or Scales()
    tables, codes, book = dense.tables_of(left, device), packed.codes.contiguous(), packed.codebook.contiguous()
    powers, formats = dense.powers(packed.levels, device), dense.formats(packed.levels)
    (P, Q, padded), between = tables.sizes.values(), out.view(torch.float16)
    sizes = packed.columns, -(-packed.columns // word(packed.levels)[0])
    blocks, Qs = -(-packed.columns // BLOCK), {"Q": Q, "padded": padded, "block": BLOCK}
    options = {"num_stages": 1, "num_warps": MOST_WARPS if max(P, padded) >= LONG else WARPS}
    with dense.on_device(device):
        kernels.first_pass[(blocks, P)](codes, powers, book, tables.inner, between, *sizes, **formats, **Qs, **options)
        kernels.second_pass[(blocks, Q)](
            *(codes, powers, book, tables.hadamard, tables.second, between, *sizes, tables.root),
            **{**formats, "P": P, "Q": Q, "block": BLOCK, **options},
        )
        kernels.third_pass[(blocks, P)](
            *(between, book, tables.inner, tables.first, *scales.pointers(tables.first), out),
            *(packed.columns, scales.step),
            **{"levels": formats["levels"], "table": formats["table"], "last": last},
            **{**Qs, **scales.constants(), **options},
        )


def _transform_rows(right: CoupledBases, packed: Packed, rows: Tensor, scales: Scales, out: Tensor) -> None:
    """The right basis and the scales: `out` (rows, columns) of `rows`, float16, over the codebook's largest entry."""
    from kquant_cli.runtime.products.triton_dense import transform_rows  # noqa: PLC0415

    tables, formats = dense.tables_of(right, out.device), dense.formats(packed.levels)
    with dense.on_device(out.device):
        transform_rows[(min(len(rows), dense.programs(out.device)),)](
            *(rows, packed.codebook.contiguous(), tables.hadamard, tables.inner, tables.first),
            *scales.pointers(tables.first),
            *(out, len(rows), scales.step, tables.root),
            **{"levels": formats["levels"], "table": formats["table"], **tables.sizes, **scales.constants()},
            num_stages=1,
            num_warps=tables.warps,
        )
