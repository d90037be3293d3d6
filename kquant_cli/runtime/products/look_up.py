"""How native/cuda/product.cu looks up a codebook's entries: its tables, for 2, 4, 8, ... or 256 levels.

Codebooks that are whole numbers of one byte times a step, of 4, 8 or 16 levels, are looked up in registers:

    codebook = step * numbers,    |numbers| <= 127

PRMT looks 8 bytes up by 3 bits, and turns a byte into its sign where the selector's bit 3 is set. Sixteen entries are
two such tables, P for the codes below 8 and N for the others, whose results are added; each is one less where the other
gives -1, the sign of a negative byte:

    P_i + (N_i < 0 ? -1 : 0) = entry i,     N_i + (P_i < 0 ? -1 : 0) = entry i + 8

Where codes i and i + 8 have the same u, one table serves it, and v is P_i + Q_i or (P_i < 0 ? -1 : 0) + Q_i.
All others are looked up in shared memory, as pairs of float16 times the largest entry.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kquant_cli.packing import word

LARGEST = 127
ROUNDING = 2.0**-22  # of float32, twice, in units of the codebook's largest entry
SIXTEEN, SIXTEEN_PAIRED, FOUR, EIGHT = range(4)  # KIND in product.cu
TABLE = 16  # KIND of tables in shared memory, less the number of bits


class LookUp(NamedTuple):
    """How codes are looked up: the kernel's KIND, its table, int32, and what its entries are in units of."""

    kind: int
    table: Tensor
    step: float

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.kind - TABLE if self.kind > TABLE else {FOUR: 2, EIGHT: 3}.get(self.kind, 4)

    @property
    def digits(self) -> int:
        """What activations.cu is told of the words: their digits, less than 0 for activations in float16."""
        digits = word(1 << self.bits)[0]
        return -digits if self.kind > TABLE else digits


def look_up(codebook: Tensor) -> LookUp | None:
    """The look-up for a codebook (levels, 2) on the CPU; None unless levels are a power of two."""
    levels, largest = len(codebook), float(codebook.abs().max())
    if levels & (levels - 1) or not 0 < largest < float("inf"):
        return None
    found = _by_permutes(codebook.double()) if levels in (4, 8, 16) else None
    if found is None:
        pairs = (codebook / largest).half().contiguous()
        found = LookUp(TABLE + levels.bit_length() - 1, pairs.view(torch.int32).flatten(), largest)
    return found


def _by_permutes(codebook: Tensor) -> LookUp | None:
    """Of 4, 8 or 16 levels that lie on a grid of one byte."""
    found = _on_a_grid(codebook)
    if found is None:
        return None
    levels, (numbers, step) = len(codebook), found
    u, v = numbers.T.tolist()
    none = [0] * 8
    if levels < 16:
        padding = [0] * (8 - levels)
        return LookUp(FOUR if levels == 4 else EIGHT, _words([u + padding, none, v + padding, none]), step)
    if u[:8] == u[8:] and all(abs(a - b) <= LARGEST for a, b in zip(v[:8], v[8:], strict=True)):
        return LookUp(SIXTEEN_PAIRED, _words([u[:8], none, *_difference(v)]), step)
    tables = [_split(entries) for entries in (u, v)]
    if tables[0] is None or tables[1] is None:
        return None
    return LookUp(SIXTEEN, _words([*tables[0], *tables[1]]), step)


def _on_a_grid(codebook: Tensor) -> tuple[Tensor, float] | None:
    """The whole numbers (levels, 2) and the step, the coarsest there is; None where there is none."""
    largest = float(codebook.abs().max())
    for count in range(1, LARGEST + 1):
        scaled = codebook * (count / largest)
        if bool(((scaled - scaled.round()).abs() <= ROUNDING * count).all()):
            return scaled.round().long(), largest / count
    return None


def _split(entries: list[int]) -> tuple[list[int], list[int]] | None:
    """P and N for sixteen entries; None where one would not fit in a byte."""
    pairs = []
    for low, high in zip(entries[:8], entries[8:], strict=True):
        candidates = ((low + n, high + p) for p in (0, 1) for n in (0, 1) if (low + n < 0) == p and (high + p < 0) == n)
        pair = next((c for c in candidates if max(c) <= LARGEST), None)
        if pair is None:
            return None
        pairs.append(pair)
    return [p for p, _ in pairs], [n for _, n in pairs]


def _difference(entries: list[int]) -> tuple[list[int], list[int]]:
    """P and Q for sixteen entries, of which i and i + 8 differ by at most 127."""
    pairs = list(zip(entries[:8], entries[8:], strict=True))
    return [low - high - (low < high) for low, high in pairs], [high + (low < high) for low, high in pairs]


def _words(tables: list[list[int]]) -> Tensor:
    """Tables of 8 signed bytes each as pairs of 32-bit words, the first entry lowest."""
    return torch.tensor(tables, dtype=torch.int8).flatten().view(torch.int32)
