"""Codes <-> bytes, for any number of levels from 2 to 256.

A row of codes is cut into words of `digits` codes. A word is the little-endian number sum_i code_i * levels^i in
`size` bytes:

    levels 16: 2 codes in 1 byte    |  code 0  |  code 1  |          (low nibble first)
    levels  8: 8 codes in 3 bytes   a little-endian stream of 3-bit fields
    levels  3: 5 codes in 1 byte    c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4 <= 242

For powers of two this is the ordinary little-endian bit stream. Of all words of up to 7 bytes (they fit an int64) the
one with the fewest bits a code is taken, the shortest of equals. The last word of a row is padded with code 0 and cut
to the bytes that its codes need, so that every row starts at a byte.
"""

from __future__ import annotations

import math
from functools import cache

import torch

MAX_LEVELS = 256
_BLOCK = 1 << 21  # codes unpacked at a time: a word is an int64


@cache
def word(levels: int) -> tuple[int, int]:
    """(digits, size): codes in a word and bytes of a word.

    Raises
    ------
    ValueError
        `levels` is not between 2 and 256.
    """
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels must be between 2 and {MAX_LEVELS}, not {levels}")
    words = [(_digits(levels, size), size) for size in range(1, 8)]
    return min(words, key=lambda w: (w[1] / w[0], w[1]))


def _digits(levels: int, size: int) -> int:
    """The most codes that `size` bytes hold: the largest d with levels^d <= 256^size, in exact integers."""
    digits = int(8 * size / math.log2(levels)) + 1
    while levels**digits > 256**size:
        digits -= 1
    return digits


def row_bytes(columns: int, levels: int) -> int:
    """Bytes of a packed row of `columns` codes."""
    digits, size = word(levels)
    whole, rest = divmod(columns, digits)
    tail = next(b for b in range(size + 1) if levels**rest <= 256**b)
    return whole * size + tail


def pack(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """Pack codes (rows, columns), uint8 below `levels`, into bytes (rows, row_bytes(columns, levels)), uint8.

    Raises
    ------
    ValueError
        A code is not below `levels`.
    """
    rows, columns = codes.shape
    if codes.numel() and int(codes.max()) >= levels:
        raise ValueError(f"a code is {int(codes.max())}, expected below {levels} levels")
    digits, size = word(levels)
    words = -(-columns // digits)
    packed = torch.empty(rows, row_bytes(columns, levels), dtype=torch.uint8, device=codes.device)
    weights = torch.tensor([levels**i for i in range(digits)], device=codes.device)
    shifts = 8 * torch.arange(size, device=codes.device)
    step = max(1, _BLOCK // max(1, columns))
    for begin in range(0, rows, step):
        part = codes[begin : begin + step].to(torch.int64)
        part = torch.nn.functional.pad(part, (0, words * digits - columns)).view(len(part), words, digits)
        number = (part * weights).sum(-1)
        octets = (number.unsqueeze(-1) >> shifts) & 255
        packed[begin : begin + step] = octets.view(len(part), -1)[:, : packed.shape[1]].to(torch.uint8)
    return packed


def unpack(packed: torch.Tensor, levels: int, columns: int) -> torch.Tensor:
    """The codes (rows, columns), uint8, of packed bytes (rows, row_bytes(columns, levels)), uint8.

    Raises
    ------
    ValueError
        `packed` has not the width that `columns` codes of `levels` levels take.
    """
    digits, size = word(levels)
    words = -(-columns // digits)
    if packed.shape[1] != row_bytes(columns, levels):
        raise ValueError(f"packed rows of {packed.shape[1]} bytes, expected {row_bytes(columns, levels)}")
    codes = torch.empty(len(packed), columns, dtype=torch.uint8, device=packed.device)
    weights = torch.tensor([levels**i for i in range(digits)], device=packed.device)
    shifts = 8 * torch.arange(size, device=packed.device)
    step = max(1, _BLOCK // max(1, columns))
    for begin in range(0, len(packed), step):
        part = packed[begin : begin + step].to(torch.int64)
        part = torch.nn.functional.pad(part, (0, words * size - part.shape[1])).view(len(part), words, size)
        number = (part << shifts).sum(-1)
        values = (number.unsqueeze(-1) // weights) % levels
        codes[begin : begin + step] = values.view(len(part), -1)[:, :columns].to(torch.uint8)
    return codes
