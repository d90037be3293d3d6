"""The two bases of the annealed encoder's frame, and the orthogonal matrix that couples them.

With T the `hadamard_dct` basis and two draws of random signs, D_1 and D_2 (hadamard_dct.py):

    A = D_1 T   (`signed_hadamard_dct`),    B = D_1 T D_2 T^T   (`twice_signed_hadamard_dct`),    A^T B = Q = D_2 T^T

So in the coordinates of A the sum A u + B v is u + Q v, which is what the annealing searches, and of an activation x
A^T x = a and B^T x = Q^T a: three transforms become two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kquant_cli.bases.basis import Basis
from kquant_cli.bases.dct import dct_matrix
from kquant_cli.bases.hadamard_dct import LARGEST_DENSE, power_and_order, two_sign_draws
from kquant_cli.bases.registry import basis_for
from kquant_cli.bases.spec import BasisSpec

KINDS = ("signed_hadamard_dct", "twice_signed_hadamard_dct")
KEPT = 64  # pairs whose signs and tables stay in memory

Make = Callable[[BasisSpec], Basis]


class LoopTables(NamedTuple):
    """What the compiled loops read, float32 on the CPU: the signs over sqrt(2^k), and C of order m; size = 2^k m."""

    power: int  # 2^k
    order: int  # m
    first: Tensor  # (size,) of D_1
    second: Tensor  # (size,) of D_2
    dense: Tensor  # (m, m)
    dense_transposed: Tensor  # (m, m)


@dataclass(frozen=True)
class CoupledBases:
    """A and B of one size and seed; `make` gives the basis of a spec wherever a method takes it."""

    size: int
    seed: int

    @classmethod
    def of(cls, first: BasisSpec | None, second: BasisSpec | None) -> CoupledBases | None:
        """The pair that two specs are; None where they are no such pair."""
        pair = cls.with_first(first)
        return pair if pair is not None and second == pair.second else None

    @classmethod
    def with_first(cls, first: BasisSpec | None) -> CoupledBases | None:
        """The pair whose A a spec is; None where it is none."""
        return None if first is None or first.kind != KINDS[0] else cls(first.size, first.seed)

    @classmethod
    def beginning_with(cls, first: BasisSpec | None) -> CoupledBases | None:
        """The pair whose A is `first`; None where that is no such basis."""
        return cls(first.size, first.seed) if first is not None and first.kind == KINDS[0] else None

    @property
    def first(self) -> BasisSpec:
        """A."""
        return BasisSpec(KINDS[0], self.size, self.seed)

    @property
    def second(self) -> BasisSpec:
        """B."""
        return BasisSpec(KINDS[1], self.size, self.seed)

    def couple(self, v: Tensor) -> Tensor:
        """Q v for rows v (rows, size)."""
        return self._transform(basis_for).adjoint(v).mul_(self._second_signs(v))

    def couple_adjoint(self, x: Tensor, make: Make = basis_for) -> Tensor:
        """Q^T x for rows x (rows, size)."""
        return self._transform(make).apply(x * self._second_signs(x))

    def loop_tables(self) -> LoopTables | None:
        """The tables of the compiled loops; None where C is too large for them."""
        return _loop_tables(self.size, self.seed) if power_and_order(self.size)[1] <= LARGEST_DENSE else None

    def _transform(self, make: Make) -> Basis:
        return make(BasisSpec("hadamard_dct", self.size))

    def _second_signs(self, like: Tensor) -> Tensor:
        return _signs_on(self.size, self.seed, like.device, like.dtype)


@lru_cache(maxsize=KEPT)
def _signs_on(size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        return two_sign_draws(seed, size)[1].to(device, dtype)


@lru_cache(maxsize=KEPT)
def _loop_tables(size: int, seed: int) -> LoopTables:
    power, order = power_and_order(size)
    first, second = (draw.div(math.sqrt(power)).float() for draw in two_sign_draws(seed, size))
    dense = dct_matrix(order).float()
    return LoopTables(power, order, first, second, dense, dense.T.contiguous())
