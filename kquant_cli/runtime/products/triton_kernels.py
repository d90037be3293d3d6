"""The product as Triton kernels: packed codes are read once, and one look-up serves both columns of the codebook.

    partial[p, 0] = sum over part p of the words of  Cu[code] a + Cv[code] b        (with `split`: u and v apart)

Digit i of neighbouring words meets neighbouring activations (packing.py), so a kernel loads a tile of words (rows,
words), takes digit after digit off it and multiplies with a[i W + t] as it lies in memory. The codebook is in registers
or in shared memory (tl.gather). For 16-bit activations its two columns are the halves of one 32-bit entry:

    float16     half(u) | half(v) << 16
    bfloat16    GEMV: u is entry << 16, and v is the entry itself read as a float32: its high half is chosen so that,
                u's bits behind it, it is nearest to v. So v needs no instruction, and u one.

A word of more than 32 bits is taken apart in `chunks` of `chunk` digits: narrow divisions are fast, and short code too.

float32 activations, and codebooks of one column, look float32 up. Sums are float32. The words of a row are cut into
parts where rows alone would leave the device idle; `sum_parts` adds these in a fixed order: results do not vary.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kquant_cli.runtime.products.triton_tiles import (
    add_products,
    codebook_column,
    float_and_half,
    halves,
    load_activations,
    load_scales,
    load_words,
    look_up,
    store_sums,
)


@triton.jit
def gemv(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915 (a compiler unrolls it: no calls to save)
    codes_ptr,
    codebook_ptr,
    scale_ptr,
    a_ptr,
    b_ptr,
    partial_ptr,
    rows,
    columns,
    words,
    groups,
    part,
    levels: tl.constexpr,
    table: tl.constexpr,
    size: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    two: tl.constexpr,
    split: tl.constexpr,
    group: tl.constexpr,
    tokens: tl.constexpr,
    block_rows: tl.constexpr,
    block_words: tl.constexpr,
):
    """For 1 to 4 tokens: every thread multiplies what it decodes; sums over the words stay in the threads to the end.

    Grid (blocks of rows, parts). `part` words a part; partial (parts, 1 or 2, tokens, rows).
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    packed: tl.constexpr = two and dtype != tl.float32
    u_entries = codebook_column(codebook_ptr, 0, 2 if two else 1, levels, table)
    if two:
        v_entries = codebook_column(codebook_ptr, 1, 2, levels, table)
    if packed:
        entries = float_and_half(u_entries, v_entries) if dtype == tl.bfloat16 else halves(u_entries, v_entries, dtype)
    # A sum for each token (in a tensor with an axis of tokens each would pass through shared memory at every step).
    first0 = tl.zeros((block_rows, block_words), tl.float32)
    first1, first2, first3, second0, second1, second2, second3 = first0, first0, first0, first0, first0, first0, first0
    begin = tl.program_id(1) * part
    for start in range(begin, tl.minimum(begin + part, words), block_words):
        t = start + tl.arange(0, block_words)
        rest = load_words(codes_ptr, row, t, rows, words, size)
        for c in range(chunks):
            numbers = rest.to(tl.uint32)
            if chunks > 1:
                numbers = (rest % levels**chunk).to(tl.uint32)
                rest = rest // levels**chunk
            for i in tl.static_range(chunk):
                codes = (numbers % levels).to(tl.int32)
                numbers = numbers // levels
                at = (c * chunk + i) * words + t
                inside = (t < words) & (at < columns)
                if packed:
                    entry = look_up(entries, codes, block_rows, block_words)
                    if dtype == tl.bfloat16:
                        u = (entry << 16).to(tl.float32, bitcast=True)
                        v = entry.to(tl.float32, bitcast=True)
                    else:
                        u = entry.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
                        v = (entry >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
                else:
                    u = look_up(u_entries, codes, block_rows, block_words)
                    if two:
                        v = look_up(v_entries, codes, block_rows, block_words)
                if group:
                    scale = load_scales(scale_ptr, row, at, rows, groups, group, inside)
                    u = u * scale
                    if two:
                        v = v * scale
                first0 = add_products(first0, u, a_ptr, at, inside)
                if tokens > 1:
                    first1 = add_products(first1, u, a_ptr + columns, at, inside)
                if tokens > 2:
                    first2 = add_products(first2, u, a_ptr + 2 * columns, at, inside)
                if tokens > 3:
                    first3 = add_products(first3, u, a_ptr + 3 * columns, at, inside)
                if split:
                    second0 = add_products(second0, v, b_ptr, at, inside)
                    if tokens > 1:
                        second1 = add_products(second1, v, b_ptr + columns, at, inside)
                    if tokens > 2:
                        second2 = add_products(second2, v, b_ptr + 2 * columns, at, inside)
                    if tokens > 3:
                        second3 = add_products(second3, v, b_ptr + 3 * columns, at, inside)
                elif two:
                    first0 = add_products(first0, v, b_ptr, at, inside)
                    if tokens > 1:
                        first1 = add_products(first1, v, b_ptr + columns, at, inside)
                    if tokens > 2:
                        first2 = add_products(first2, v, b_ptr + 2 * columns, at, inside)
                    if tokens > 3:
                        first3 = add_products(first3, v, b_ptr + 3 * columns, at, inside)
    out = partial_ptr + tl.program_id(1) * (2 if split else 1) * tokens * rows
    store_sums(out, first0, row, rows)
    if tokens > 1:
        store_sums(out + rows, first1, row, rows)
    if tokens > 2:
        store_sums(out + 2 * rows, first2, row, rows)
    if tokens > 3:
        store_sums(out + 3 * rows, first3, row, rows)
    if split:
        store_sums(out + tokens * rows, second0, row, rows)
        if tokens > 1:
            store_sums(out + (tokens + 1) * rows, second1, row, rows)
        if tokens > 2:
            store_sums(out + (tokens + 2) * rows, second2, row, rows)
        if tokens > 3:
            store_sums(out + (tokens + 3) * rows, second3, row, rows)


@triton.jit
def gemm(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915
    codes_ptr,
    codebook_ptr,
    scale_ptr,
    a_ptr,
    b_ptr,
    partial_ptr,
    rows,
    columns,
    words,
    tokens,
    groups,
    part,
    levels: tl.constexpr,
    table: tl.constexpr,
    size: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    two: tl.constexpr,
    split: tl.constexpr,
    group: tl.constexpr,
    block_tokens: tl.constexpr,
    block_rows: tl.constexpr,
    block_words: tl.constexpr,
    widen: tl.constexpr,
):
    """For many tokens: decoded tiles, in the activations' dtype, go to the matrix units (`widen`: in float32).

    Grid (blocks of rows, parts, blocks of tokens); the rest as in `gemv`.
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    token = tl.program_id(2) * block_tokens + tl.arange(0, block_tokens)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    operand: tl.constexpr = tl.float32 if widen else dtype
    packed: tl.constexpr = two and dtype != tl.float32
    u_entries = codebook_column(codebook_ptr, 0, 2 if two else 1, levels, table)
    if two:
        v_entries = codebook_column(codebook_ptr, 1, 2, levels, table)
    if packed:
        entries = halves(u_entries, v_entries, dtype)
    first = tl.zeros((block_tokens, block_rows), tl.float32)
    if split:
        second = tl.zeros((block_tokens, block_rows), tl.float32)
    begin = tl.program_id(1) * part
    for start in range(begin, tl.minimum(begin + part, words), block_words):
        t = start + tl.arange(0, block_words)
        rest = load_words(codes_ptr, row, t, rows, words, size)
        for c in range(chunks):
            numbers = rest.to(tl.uint32)
            if chunks > 1:
                numbers = (rest % levels**chunk).to(tl.uint32)
                rest = rest // levels**chunk
            for i in tl.static_range(chunk):
                codes = (numbers % levels).to(tl.int32)
                numbers = numbers // levels
                at = (c * chunk + i) * words + t
                inside = (t < words) & (at < columns)
                if packed:
                    entry = look_up(entries, codes, block_rows, block_words)
                    u = entry.to(tl.uint16).to(dtype, bitcast=True)
                    v = (entry >> 16).to(tl.uint16).to(dtype, bitcast=True)
                else:
                    u = look_up(u_entries, codes, block_rows, block_words)
                    if two:
                        v = look_up(v_entries, codes, block_rows, block_words)
                if group:
                    scale = load_scales(scale_ptr, row, at, rows, groups, group, inside)
                    u = u.to(tl.float32) * scale
                    if two:
                        v = v.to(tl.float32) * scale
                a = load_activations(a_ptr, token, at, tokens, columns, inside)
                first = tl.dot(a.to(operand), tl.trans(u.to(operand)), first, input_precision="ieee")
                if two:
                    b = load_activations(b_ptr, token, at, tokens, columns, inside)
                    if split:
                        second = tl.dot(b.to(operand), tl.trans(v.to(operand)), second, input_precision="ieee")
                    else:
                        first = tl.dot(b.to(operand), tl.trans(v.to(operand)), first, input_precision="ieee")
    outputs: tl.constexpr = 2 if split else 1
    mask = (token[:, None] < tokens) & (row[None, :] < rows)
    line = tl.program_id(1) * outputs * tokens + token[:, None]
    out = partial_ptr + line.to(tl.int64) * rows + row[None, :]
    tl.store(out, first.to(partial_ptr.dtype.element_ty), mask=mask)
    if split:
        out = partial_ptr + (line + tokens).to(tl.int64) * rows + row[None, :]
        tl.store(out, second.to(partial_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_parts(partial_ptr, out_ptr, count, parts, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """partial (parts, count) to its sums over the parts (count,), the first part first."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    total = tl.zeros((block,), tl.float32)
    for part in range(parts):
        total += tl.load(partial_ptr + part * count + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)
