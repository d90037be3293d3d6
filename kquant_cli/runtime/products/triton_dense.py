"""The Triton kernel that decodes a matrix of the annealed encoder into its dense rows, bases and scales included.

    W_row = s D_1 T (u + D_2 T^T v) / d        (u, v = S Cu[codes_row], S Cv[codes_row]; bases/coupled.py)

A row of n = P Q numbers is a matrix (P, Q), and T = H (x) G with H Sylvester's of order P: T x is H X G^T, T^T x is
H X G. So each row is two look-ups and four products of small matrices, which the matrix units do in float16, with sums
in float32; the codebook is divided by its largest entry first and multiplied by it last: float16 has a short range.
H and G are without their 1 / sqrt(2^k), which is `root`: so H is exact, and G as exact as C.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kquant_cli.runtime.products.triton_tiles import largest_entry, load_codes


@triton.jit
def decode_rows(  # type: ignore[no-untyped-def]
    codes_ptr,
    powers_ptr,
    codebook_ptr,
    hadamard_ptr,
    inner_ptr,
    first_ptr,
    second_ptr,
    row_scale_ptr,
    column_scale_ptr,
    channel_scale_ptr,
    out_ptr,
    rows,
    words,
    scale_step,
    root,
    levels: tl.constexpr,
    table: tl.constexpr,
    bits: tl.constexpr,
    digits: tl.constexpr,
    size: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    padded: tl.constexpr,
    row_scaled: tl.constexpr,
    column_scaled: tl.constexpr,
    channel_scaled: tl.constexpr,
):
    """Each program decodes rows r, r + programs, ...: codes (rows, words * size) to out (rows, P * Q).

    powers (digits,): levels^digit, int64 (`bits`: log2 of levels, or 0); hadamard (P, P) and inner (padded, padded) =
    G, zeros beyond Q, float16; first and second (P * Q,): the signs D_1 and D_2, int8; scales: s of row r stands at
    r * scale_step, S and d are (P * Q,), where they are.
    """
    i, j, k = tl.arange(0, P), tl.arange(0, padded), tl.arange(0, P)
    column = i[:, None] * Q + j[None, :]
    inside = (j[None, :] < Q) & (i[:, None] < P)
    digit = tl.zeros((P, padded), tl.int32)
    if digits <= 8:  # cheaper than a division, so that it need not stay in registers
        for d in tl.static_range(1, digits):
            digit += (column >= d * words).to(tl.int32)
    else:
        digit = column // words
    word = column - digit * words
    power = digit
    if bits == 0:
        power = tl.load(powers_ptr + digit, mask=inside, other=1)
    hadamard = tl.load(hadamard_ptr + i[:, None] * P + k[None, :])
    inner = tl.load(inner_ptr + j[:, None] * padded + j[None, :])
    adjoint = tl.load(inner_ptr + j[None, :] * padded + j[:, None])
    unit = largest_entry(codebook_ptr, levels, table)
    inverse = 1.0 / unit
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        line = codes_ptr + tl.cast(row, tl.int64) * (words * size)
        code = load_codes(line + word, digit, power, words, inside, levels, bits, size)
        v = tl.where(inside, tl.load(codebook_ptr + 2 * code + 1) * inverse, 0.0)
        if column_scaled:
            v = v * tl.load(column_scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
        y = tl.dot(v.to(tl.float16), inner)
        y = tl.dot(hadamard, y.to(tl.float16)) * root
        # Signs and scales are read for each row: to keep them for all would take more registers than there are.
        y = y * tl.load(second_ptr + column, mask=inside, other=0).to(tl.float32)
        u = tl.where(inside, tl.load(codebook_ptr + 2 * code) * inverse, 0.0)
        if column_scaled:
            u = u * tl.load(column_scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
        y = y + u
        factor = root * unit
        if row_scaled:
            factor *= tl.load(row_scale_ptr + row * scale_step).to(tl.float32)
        out = out_ptr + tl.cast(row, tl.int64) * (P * Q)
        _store_row(out, y, hadamard, adjoint, factor, first_ptr, channel_scale_ptr, column, inside, channel_scaled)


@triton.jit
def transform_rows(  # type: ignore[no-untyped-def]
    dense_ptr,
    codebook_ptr,
    hadamard_ptr,
    inner_ptr,
    first_ptr,
    row_scale_ptr,
    column_scale_ptr,
    channel_scale_ptr,
    out_ptr,
    rows,
    scale_step,
    root,
    levels: tl.constexpr,
    table: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    padded: tl.constexpr,
    row_scaled: tl.constexpr,
    column_scaled: tl.constexpr,
    channel_scaled: tl.constexpr,
):
    """out_row = s D_1 T (S w) / d of rows w (rows, P * Q) that are over the codebook's largest entry; in place, too.

    The rest as in `decode_rows`.
    """
    i, j, k = tl.arange(0, P), tl.arange(0, padded), tl.arange(0, P)
    column = i[:, None] * Q + j[None, :]
    inside = (j[None, :] < Q) & (i[:, None] < P)
    hadamard = tl.load(hadamard_ptr + i[:, None] * P + k[None, :])
    adjoint = tl.load(inner_ptr + j[None, :] * padded + j[:, None])
    unit = largest_entry(codebook_ptr, levels, table)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * (P * Q)
        y = tl.load(dense_ptr + at + column, mask=inside, other=0.0).to(tl.float32)
        if column_scaled:
            y = y * tl.load(column_scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
        factor = root * unit
        if row_scaled:
            factor *= tl.load(row_scale_ptr + row * scale_step).to(tl.float32)
        out = out_ptr + at
        _store_row(out, y, hadamard, adjoint, factor, first_ptr, channel_scale_ptr, column, inside, channel_scaled)


@triton.jit
def _store_row(  # type: ignore[no-untyped-def]
    out, y, hadamard, adjoint, factor, first_ptr, channel_scale_ptr, column, inside, channel_scaled: tl.constexpr
):
    """factor D_1 T y / d of a row y (P, padded)."""
    y = tl.dot(y.to(tl.float16), adjoint)
    y = tl.dot(hadamard, y.to(tl.float16))
    y = y * factor * tl.load(first_ptr + column, mask=inside, other=0).to(tl.float32)
    if channel_scaled:
        y = y / tl.load(channel_scale_ptr + column, mask=inside, other=1.0).to(tl.float32)
    tl.store(out + column, y.to(out.dtype.element_ty), mask=inside)
