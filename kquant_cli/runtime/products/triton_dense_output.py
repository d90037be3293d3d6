"""The Triton kernels that decode a matrix with coupled bases on the output side: along its columns, in three passes.

    W = D_1 T (U + D_2 T^T V),    U, V = Cu[codes], Cv[codes] (rows, columns)        (bases/coupled.py)

A column of n = P Q numbers is a matrix (P, Q), and T = H (x) G, as in triton_dense.py. Columns are too long for one
program, so T is taken apart: G on Q rows beside each other, H on P rows that are Q apart.

    first     Y = (1 (x) G^T) V        from the codes
    second    Z = (H (x) 1) (U + D_2 (H (x) 1) Y) root^2, in place
    third     W = D_1 (1 (x) G) Z, with the scales, unless a right basis follows (`transform_rows` of triton_dense.py)

What goes from one pass to the next is float16, over the codebook's largest entry; sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kquant_cli.runtime.products.triton_tiles import largest_entry, load_codes


@triton.jit
def first_pass(  # type: ignore[no-untyped-def]
    codes_ptr,
    powers_ptr,
    codebook_ptr,
    inner_ptr,
    out_ptr,
    columns,
    words,
    levels: tl.constexpr,
    table: tl.constexpr,
    bits: tl.constexpr,
    size: tl.constexpr,
    Q: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
):
    """Program (blocks of columns, P): rows i Q, i Q + 1, ... of Y; the arguments are those of `decode_rows`."""
    j, k = tl.arange(0, padded), tl.arange(0, padded)
    row = tl.program_id(1) * Q + j
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = (j < Q)[:, None] & (column < columns)[None, :]
    v = _entries(codes_ptr, powers_ptr, codebook_ptr + 1, row, column, columns, words, inside, levels, bits, size)
    v = v * (1.0 / largest_entry(codebook_ptr, levels, table))
    adjoint = tl.load(inner_ptr + k[None, :] * padded + j[:, None])
    _store(out_ptr, tl.dot(adjoint, tl.where(inside, v, 0.0).to(tl.float16)), row, column, columns, inside)


@triton.jit
def second_pass(  # type: ignore[no-untyped-def]
    codes_ptr,
    powers_ptr,
    codebook_ptr,
    hadamard_ptr,
    second_ptr,
    dense_ptr,
    columns,
    words,
    root,
    levels: tl.constexpr,
    table: tl.constexpr,
    bits: tl.constexpr,
    size: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    block: tl.constexpr,
):
    """Program (blocks of columns, Q): rows j, Q + j, ... of Y become those of Z; root: 1 / sqrt(2^k)."""
    i, k = tl.arange(0, P), tl.arange(0, P)
    row = i * Q + tl.program_id(1)
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = (i < P)[:, None] & (column < columns)[None, :]
    hadamard = tl.load(hadamard_ptr + i[:, None] * P + k[None, :])
    y = tl.dot(hadamard, _load(dense_ptr, row, column, columns, inside)) * root
    y = y * tl.load(second_ptr + row).to(tl.float32)[:, None]
    u = _entries(codes_ptr, powers_ptr, codebook_ptr, row, column, columns, words, inside, levels, bits, size)
    y = y + u * (1.0 / largest_entry(codebook_ptr, levels, table))
    _store(dense_ptr, tl.dot(hadamard, y.to(tl.float16)) * root, row, column, columns, inside)


@triton.jit
def third_pass(  # type: ignore[no-untyped-def]
    dense_ptr,
    codebook_ptr,
    inner_ptr,
    first_ptr,
    row_scale_ptr,
    column_scale_ptr,
    channel_scale_ptr,
    out_ptr,
    columns,
    scale_step,
    levels: tl.constexpr,
    table: tl.constexpr,
    Q: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    last: tl.constexpr,
    row_scaled: tl.constexpr,
    column_scaled: tl.constexpr,
    channel_scaled: tl.constexpr,
):
    """Program (blocks of columns, P): as in `first_pass`; `last`: with the scales, in the weight's own units."""
    j, k = tl.arange(0, padded), tl.arange(0, padded)
    row = tl.program_id(1) * Q + j
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = (j < Q)[:, None] & (column < columns)[None, :]
    inner = tl.load(inner_ptr + j[:, None] * padded + k[None, :])
    y = tl.dot(inner, _load(dense_ptr, row, column, columns, inside))
    factor = tl.load(first_ptr + row, mask=j < Q, other=0).to(tl.float32)
    if last:
        factor *= largest_entry(codebook_ptr, levels, table)
    if row_scaled:
        factor *= tl.load(row_scale_ptr + row * scale_step, mask=j < Q, other=0.0).to(tl.float32)
    y = y * factor[:, None]
    if column_scaled:
        y = y * tl.load(column_scale_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    if channel_scaled:
        y = y / tl.load(channel_scale_ptr + column, mask=column < columns, other=1.0).to(tl.float32)[None, :]
    _store(out_ptr, y, row, column, columns, inside)


@triton.jit
def _entries(  # type: ignore[no-untyped-def]
    codes_ptr,
    powers_ptr,
    column_ptr,
    row,
    column,
    columns,
    words,
    inside,
    levels: tl.constexpr,
    bits: tl.constexpr,
    size: tl.constexpr,
):
    """One column of the codebook, at `column_ptr`, by the codes of a tile."""
    digit = column // words
    power = digit
    if bits == 0:
        power = tl.load(powers_ptr + digit, mask=column < columns, other=1)
    at = codes_ptr + row.to(tl.int64)[:, None] * (words * size) + (column - digit * words)[None, :]
    codes = load_codes(at, digit[None, :], power[None, :], words, inside, levels, bits, size)
    return tl.load(column_ptr + 2 * codes)


@triton.jit
def _load(ptr, row, column, columns, inside):  # type: ignore[no-untyped-def]
    return tl.load(ptr + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def _store(ptr, y, row, column, columns, inside):  # type: ignore[no-untyped-def]
    tl.store(ptr + row.to(tl.int64)[:, None] * columns + column[None, :], y.to(ptr.dtype.element_ty), mask=inside)
