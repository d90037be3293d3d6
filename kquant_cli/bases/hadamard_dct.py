"""T = H (x) C: a Hadamard transform as far as the size allows, and a DCT across the rest; it has every size.

    size = 2^k m, m odd;   H the scaled Sylvester matrix of order 2^k, C the `dct` basis of order m
    576 = 64 * 9,   768 = 256 * 3,   1536 = 512 * 3,   11008 = 256 * 43,   4096 = 4096 * 1

C is a dense matrix up to `LARGEST_DENSE`; above, as for a vocabulary of 50257 = 1 * 50257, the transform of `dct`.
The index of a vector is i = i_H m + i_C. The frame of the annealed encoder joins it with two draws of random signs,
eps_1 and eps_2, the first and the second `size` signs that the seed gives (D_i = diag(eps_i)):

    hadamard_dct                Q = T, no randomness, the seed is not used
    signed_hadamard_dct         Q = D_1 T:           Q^T x = T^T (eps_1 * x)
    twice_signed_hadamard_dct   Q = D_1 T D_2 T^T:   Q^T x = T (eps_2 * T^T (eps_1 * x))
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from numpy.random import RandomState
from torch import Tensor

from kquant_cli.bases.dct import DCT, DCTTables, dct_matrix
from kquant_cli.bases.draws import random_signs
from kquant_cli.bases.groups import split_bits
from kquant_cli.bases.hadamard import GROUP_BITS_CPU, GROUP_BITS_DEVICE, sylvester
from kquant_cli.bases.kronecker import KroneckerBasis
from kquant_cli.bases.signed import SignsFirst, Tables
from kquant_cli.bases.spec import BasisSpec

LARGEST_DENSE = 512  # order of C up to which it is a dense matrix


def power_and_order(size: int) -> tuple[int, int]:
    """(2^k, m) with size = 2^k m and m odd."""
    power = size & -size
    return power, size // power


def two_sign_draws(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """eps_1 and eps_2 (size,), float64."""
    draws = RandomState(seed)
    return torch.from_numpy(random_signs(draws, size)), torch.from_numpy(random_signs(draws, size))


class HadamardDCT(KroneckerBasis):
    """The Kronecker product of Sylvester's matrix and the DCT."""

    def __init__(self, spec: BasisSpec) -> None:
        super().__init__(spec)
        power, self._order = power_and_order(spec.size)
        self._bits = power.bit_length() - 1
        self._dct = DCT(replace(spec, kind="dct", size=self._order)) if self._order > LARGEST_DENSE else None

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], DCTTables | None]:
        """The dense factors of T, the leftmost first, each orthogonal; and what the transform of a large C reads."""
        groups = split_bits(self._bits, GROUP_BITS_CPU if device.type == "cpu" else GROUP_BITS_DEVICE)
        factors = [torch.from_numpy(sylvester(bits)).double() / math.sqrt(2**bits) for bits in groups]
        if self._dct is not None:
            return [factor.to(device, dtype) for factor in factors], self._dct.tables(device, dtype)
        factors += [dct_matrix(self._order)] if self._order > 1 else []
        return [factor.to(device, dtype) for factor in factors], None

    def rows(self, x: Tensor, tables: Any, adjoint: bool) -> Tensor:  # type: ignore[override]
        """The dense factors, after the transform where there is one."""
        factors, transform = tables
        if self._dct is None:
            return super().rows(x, factors, adjoint)
        y = self._dct.rows(x.reshape(-1, self._order), transform, adjoint).view(x.shape)
        return super().rows(y, factors, adjoint, inner=self._order)

    def columns(self, x: Tensor, tables: Any, adjoint: bool) -> Tensor:
        """The dense factors, then the transform where there is one, which takes rows of length m."""
        factors, transform = tables
        y = super().columns(x, factors, adjoint)
        if self._dct is None:
            return y
        y = y.view(-1, self._order, x.shape[1]).transpose(1, 2)
        z = self._dct.rows(y.reshape(-1, self._order), transform, adjoint).view(y.shape)
        return z.transpose(1, 2).reshape(x.shape)


class SignedHadamardDCT(SignsFirst):
    """Random signs, then T^T."""

    inner = HadamardDCT


class TwiceSignedHadamardDCT(SignsFirst):
    """Random signs, T^T, further random signs, T."""

    inner = HadamardDCT

    def __init__(self, spec: BasisSpec) -> None:
        super().__init__(spec)
        self._second = two_sign_draws(spec.seed, spec.size)[1]

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> Tables:
        """The two draws of signs, and what the transform reads."""
        return torch.stack([self._signs, self._second]).to(device, dtype), self._inner.tables(device, dtype)

    def rows(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """Signs differ along the rows."""
        (first, second), inner = tables
        if adjoint:
            return self._inner.rows(self._inner.rows(x * first, inner, True) * second, inner, False)
        return self._inner.rows(self._inner.rows(x, inner, True) * second, inner, False) * first

    def columns(self, x: Tensor, tables: Tables, adjoint: bool) -> Tensor:
        """Signs differ along the columns."""
        first, second = tables[0].unsqueeze(-1)
        inner = tables[1]
        if adjoint:
            return self._inner.columns(self._inner.columns(x * first, inner, True) * second, inner, False)
        return self._inner.columns(self._inner.columns(x, inner, True) * second, inner, False) * first
