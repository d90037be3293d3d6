"""Codes <-> bytes, for any number of levels from 2 to 256: the layout that bundles store and that products read.

A word is the number sum_i code_i * levels^i of `digits` codes, in `size` bytes. Of all words of up to 7 bytes (they fit
an int64) the one with the fewest bits a code is taken, the shortest of equals:

    levels 16: 2 codes in 1 byte    two nibbles
    levels  8: 8 codes in 3 bytes   eight 3-bit fields
    levels  3: 5 codes in 1 byte    c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4 <= 242

A row of n codes has W = ceil(n / digits) words, and its codes and bytes are dealt to them in stretches of W:

    digit i of word t  =  code of column i W + t  (0 beyond the last)
    byte d of word t   =  byte d W + t of the packed row, the lowest byte first

    16 levels, 6 columns, W = 3:    | c0 c3 | c1 c4 | c2 c5 |        (low nibble first)

So the same digit of neighbouring words belongs to neighbouring columns: whoever multiplies a packed row with a vector
loads words, takes digit i of all of them and meets W activations in a row, with no shuffling for any number of levels.
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
    return -(-columns // digits) * size


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
    packed = torch.empty(rows, words * size, dtype=torch.uint8, device=codes.device)
    weights = torch.tensor([levels**i for i in range(digits)], device=codes.device).unsqueeze(1)
    shifts = 8 * torch.arange(size, device=codes.device).unsqueeze(1)
    step = max(1, _BLOCK // max(1, columns))
    for begin in range(0, rows, step):
        part = codes[begin : begin + step].to(torch.int64)
        part = torch.nn.functional.pad(part, (0, words * digits - columns)).view(len(part), digits, words)
        numbers = (part * weights).sum(1, keepdim=True)
        packed[begin : begin + step] = ((numbers >> shifts) & 255).view(len(part), -1).to(torch.uint8)
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
    if packed.shape[1] != words * size:
        raise ValueError(f"packed rows of {packed.shape[1]} bytes, expected {words * size}")
    codes = torch.empty(len(packed), columns, dtype=torch.uint8, device=packed.device)
    step = max(1, _BLOCK // max(1, columns))
    for begin in range(0, len(packed), step):
        numbers = _numbers(packed[begin : begin + step].view(-1, size, words).to(_narrowest(size)))
        for digit in range(digits):
            width = min(words, columns - digit * words)
            if width > 0:
                codes[begin : begin + step, digit * words :][:, :width] = (numbers % levels)[:, :width].to(torch.uint8)
            numbers = numbers // levels
    return codes


def _numbers(part: torch.Tensor) -> torch.Tensor:
    """The words (rows, words) of their bytes (rows, size, words), the lowest first, as integers that hold them."""
    numbers = part[:, 0]
    for byte in range(1, part.shape[1]):
        numbers = numbers | part[:, byte] << 8 * byte
    return numbers


def _narrowest(size: int) -> torch.dtype:
    """The integers in which numbers of `size` bytes are taken apart: narrow ones are fast."""
    return torch.int16 if size == 1 else torch.int32 if size <= 3 else torch.int64


def count_invalid(packed: torch.Tensor, levels: int, columns: int) -> int:
    """How many words of packed rows (rows, row_bytes) `pack` cannot have written for `columns` codes below `levels`.

    Such a word is levels^digits or more, or its padding is not 0.
    """
    digits, size = word(levels)
    words = -(-columns // digits)
    filled = (columns - 1 - torch.arange(words)) // words + 1  # digits of each word that are codes
    limits = torch.tensor([levels**digit for digit in range(digits + 1)])[filled].to(packed.device)
    if bool((limits == 256**size).all()):  # any bytes are codes
        return 0
    count, step = 0, max(1, _BLOCK // max(1, columns))
    for begin in range(0, len(packed), step):
        numbers = _numbers(packed[begin : begin + step].view(-1, size, words).to(torch.int64))
        count += int((numbers >= limits).sum())
    return count
