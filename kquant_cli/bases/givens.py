"""A product of `count` random rotations of two coordinates: Q = G_count ... G_2 G_1; the first drawn acts first.

G turns the coordinates (i, j) by an angle a: x_i, x_j -> cos(a) x_i - sin(a) x_j, sin(a) x_i + cos(a) x_j. From
RandomState(seed), in this order: the pairs (`random_pairs`), then the angles (`random_angles`). Rotations whose
coordinates are all different commute; they are applied together, each in the first layer after the last one that shares
a coordinate with it.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from kquant_cli.bases.basis import GeneratedBasis
from kquant_cli.bases.draws import random_angles, random_pairs
from kquant_cli.bases.spec import BasisSpec


class Layer(NamedTuple):
    """Rotations without a common coordinate."""

    first: Tensor  # (r,) i
    second: Tensor  # (r,) j
    cosine: Tensor  # (r, 1)
    sine: Tensor  # (r, 1)


class Givens(GeneratedBasis):
    """`count` random rotations (default: as many as the size)."""

    options: ClassVar[dict[str, int]] = {"count": 0}

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """Coordinates and angles, which are put into layers one by one."""
        return 16 * spec.options.get("count", spec.size)

    def __init__(self, spec: BasisSpec) -> None:
        super().__init__(spec)
        count = (self.option("count") or spec.size) if spec.size > 1 else 0  # one coordinate has no pairs
        draws = RandomState(spec.seed)
        self._first, self._second = random_pairs(draws, count, spec.size)
        self._angles = random_angles(draws, count)

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> list[Layer]:
        """The layers, in the order in which they act."""
        depth = _depths(self._first, self._second, self.size)
        layers = []
        for d in range(depth.max(initial=-1) + 1):
            own = depth == d
            angles = torch.from_numpy(self._angles[own])[:, None]
            layers.append(
                Layer(
                    torch.from_numpy(self._first[own]).to(device),
                    torch.from_numpy(self._second[own]).to(device),
                    angles.cos().to(device, dtype),
                    angles.sin().to(device, dtype),
                )
            )
        return layers

    def rows(self, x: Tensor, tables: list[Layer], adjoint: bool) -> Tensor:
        """By columns: gathering whole rows of the transposed chunk is fast."""
        return self.columns(x.T.contiguous(), tables, adjoint).T

    def columns(self, x: Tensor, tables: list[Layer], adjoint: bool) -> Tensor:
        """Layer by layer; the adjoint from the last, with angles negated."""
        x = x.clone(memory_format=torch.contiguous_format)
        for first, second, cosine, sine in reversed(tables) if adjoint else tables:
            a, b = x.index_select(0, first), x.index_select(0, second)
            s = -sine if adjoint else sine
            x.index_copy_(0, first, cosine * a - s * b).index_copy_(0, second, s * a + cosine * b)
        return x


def _depths(first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
    """The layer of each rotation: one after the deepest earlier rotation of i or j."""
    next_free = [0] * size
    depth = np.empty(len(first), dtype=np.int64)
    for r, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        depth[r] = next_free[i] = next_free[j] = max(next_free[i], next_free[j])
        next_free[i] += 1
        next_free[j] += 1
    return depth
