"""Hadamard bases: Q = H / sqrt(size), entries of H +-1, H H^T = size I.

The format: H = S (x) P, S the Sylvester matrix of order 2^k, S[i, j] = (-1)^popcount(i & j), and P the Paley matrix of
order m (`paley`), where k is the largest exponent for which m = size / 2^k is 1 or the order of a Paley matrix. So the
index of a vector is i = i_S m + i_P: 768 = 64 * 12, 5120 = 256 * 20, 11008 = 32 * 344. A size for which no k serves
gets blocks on the diagonal, I (x) H, of the largest divisor that has such an H; a `note` says so. Odd sizes above 1
would get blocks of 1 and are refused.

The factors are one Sylvester matrix for each group of bits of i_S, and P.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce

import numpy as np
import torch
from torch import Tensor

from kquant_cli.bases.groups import split_bits
from kquant_cli.bases.kronecker import KroneckerBasis
from kquant_cli.bases.paley import is_paley_order, paley
from kquant_cli.bases.spec import BasisSpec
from kquant_cli.errors import KQuantError

GROUP_BITS_CPU = 4  # measured on 2048 x 8192: products with 16 x 16 matrices beat 32 x 32, and 64 x 64 twofold
GROUP_BITS_DEVICE = 6  # fewer passes over memory, and matrix products are cheap


class Hadamard(KroneckerBasis):
    """The scaled Hadamard matrix of the size, or blocks of one; no randomness, the seed is not used."""

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """Paley's matrix."""
        factors = kronecker_factors(largest_block(spec.size))
        return factors[1] ** 2 if factors else 0

    def __init__(self, spec: BasisSpec) -> None:
        block = largest_block(spec.size)
        if block == 1 and spec.size > 1:
            raise KQuantError(
                f"basis '{spec.kind}' cannot have the odd size {spec.size}; choose 'dct', which has every size"
            )
        note = ""
        if block < spec.size:
            note = (
                f"{spec.kind} of size {spec.size} is block-diagonal: {spec.size // block} blocks of {block}, "
                "because no full Hadamard matrix of that size is constructed here"
            )
        super().__init__(spec, note, block)

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The factors of H, the leftmost first, each over the square root of its order."""
        factors = kronecker_factors(self.block)
        assert factors is not None
        bits, m = factors[0].bit_length() - 1, factors[1]
        groups = split_bits(bits, GROUP_BITS_CPU if device.type == "cpu" else GROUP_BITS_DEVICE)
        matrices = [sylvester(group) for group in groups] + ([paley(m)] if m > 1 else [])
        return [torch.from_numpy(h).to(device, torch.float64).div(math.sqrt(len(h))).to(dtype) for h in matrices]


@lru_cache(maxsize=64)
def largest_block(size: int) -> int:
    """The largest divisor of `size` for which `kronecker_factors` has an answer."""
    small = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    return next(d for d in sorted({*small, *(size // d for d in small)}, reverse=True) if kronecker_factors(d))


def kronecker_factors(size: int) -> tuple[int, int] | None:
    """(2^k, m) with size = 2^k m, k as large as possible, m 1 or the order of a Paley matrix; None if no k serves."""
    power = size & -size
    while power:
        if size == power or is_paley_order(size // power):
            return power, size // power
        power //= 2
    return None


def sylvester(bits: int) -> np.ndarray:
    """The Sylvester matrix of order 2^bits, int8."""
    h = np.array([[1, 1], [1, -1]], dtype=np.int8)
    return reduce(np.kron, [h] * bits, np.ones((1, 1), dtype=np.int8))
