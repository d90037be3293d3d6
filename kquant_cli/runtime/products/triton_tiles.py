"""What the Triton kernels of the product are made of: look-ups in the codebook, and tiles of words and activations."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def codebook_column(  # type: ignore[no-untyped-def]
    ptr, column: tl.constexpr, columns: tl.constexpr, levels: tl.constexpr, table: tl.constexpr
):
    """A column of the codebook (levels, columns), float32, with zeros up to `table` entries."""
    k = tl.arange(0, table)
    return tl.load(ptr + columns * k + column, mask=k < levels, other=0.0)


@triton.jit
def halves(u, v, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both columns in one entry, each rounded to `dtype`."""
    low = u.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low | (v.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32) << 16)).to(tl.int32, bitcast=True)


@triton.jit
def float_and_half(u, v):  # type: ignore[no-untyped-def]
    """Entries that are, read as float32, nearest to v, among those whose low half is u rounded to bfloat16."""
    low = u.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.uint32)
    bits = v.to(tl.uint32, bitcast=True)
    high = (bits - low + 0x8000) & 0xFFFF0000
    high = tl.where((bits & 0x7FFFFFFF) < 0x10000, bits & 0x80000000, high)  # next to zero it would wrap around
    return (high | low).to(tl.int32, bitcast=True)


@triton.jit
def look_up(entries, codes, rows: tl.constexpr, words: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries of codes (rows, words). Flat, so that the codes stay in the threads that have them."""
    return tl.reshape(tl.gather(entries, tl.reshape(codes, (rows * words,)), 0), (rows, words))


@triton.jit
def load_words(codes_ptr, row, t, rows, words, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Words `t` of rows `row` as numbers: uint32 where they fit 3 bytes, else uint64; 0 outside the matrix."""
    inside = (row[:, None] < rows) & (t[None, :] < words)
    at = codes_ptr + row[:, None].to(tl.int64) * (words * size) + t[None, :]
    integer: tl.constexpr = tl.uint32 if size <= 3 else tl.uint64
    numbers = tl.load(at, mask=inside, other=0).to(integer)
    for byte in tl.static_range(1, size):
        numbers |= tl.load(at + byte * words, mask=inside, other=0).to(integer) << (8 * byte)
    return numbers


@triton.jit
def load_codes(at, digit, power, words, inside, levels: tl.constexpr, bits: tl.constexpr, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes: `digit` of the words whose first bytes are `at`; power is levels^digit, unless `bits` = log2(levels)."""
    integer: tl.constexpr = tl.uint32 if size <= 4 else tl.uint64
    number = tl.load(at, mask=inside, other=0).to(integer)
    for byte in tl.static_range(1, size):
        number |= tl.load(at + byte * words, mask=inside, other=0).to(integer) << (8 * byte)
    if bits:
        return ((number >> (digit * bits).to(integer)) & (levels - 1)).to(tl.int32)
    return ((number // power.to(integer)) % levels).to(tl.int32)


@triton.jit
def largest_entry(codebook_ptr, levels: tl.constexpr, table: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest magnitude of a codebook (levels, 2); 1 where all are zero."""
    entry = tl.arange(0, 2 * table)
    largest = tl.max(tl.abs(tl.load(codebook_ptr + entry, mask=entry < 2 * levels, other=0.0)), 0)
    return tl.where(largest > 0, largest, 1.0)


@triton.jit
def load_activations(ptr, token, at, tokens, columns, inside):  # type: ignore[no-untyped-def]
    """Columns `at` of the activations (tokens, columns); 0 where not `inside`."""
    mask = (token[:, None] < tokens) & inside[None, :]
    return tl.load(ptr + token[:, None].to(tl.int64) * columns + at[None, :], mask=mask, other=0.0)


@triton.jit
def load_scales(ptr, row, at, rows, groups, group: tl.constexpr, inside):  # type: ignore[no-untyped-def]
    """The scales (rows, words) of the columns `at`, float32."""
    mask = (row[:, None] < rows) & inside[None, :]
    scale = tl.load(ptr + row[:, None].to(tl.int64) * groups + (at // group)[None, :], mask=mask, other=0.0)
    return scale.to(tl.float32)


@triton.jit
def add_products(total, weights, ptr, at, inside):  # type: ignore[no-untyped-def]
    """total + weights times the activations `at`, all but those (rows, words)."""
    return total + weights * tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def store_sums(ptr, total, row, rows):  # type: ignore[no-untyped-def]
    """The sums over the words of `total` (rows, words)."""
    tl.store(ptr + row, tl.sum(total, 1).to(ptr.dtype.element_ty), mask=row < rows)
