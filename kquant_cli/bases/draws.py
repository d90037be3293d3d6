"""Random numbers that a seed gives for ever, on every platform: numpy's RandomState, whose streams are frozen (NEP 19).

All but the normal numbers come from `random_sample` alone, the plain 53-bit output of the Mersenne Twister, so that
signs, permutations and index pairs are equal bit for bit wherever that generator exists.
"""

import numpy as np
from numpy.random import RandomState


def random_signs(draws: RandomState, size: int) -> np.ndarray:
    """`size` signs, float64: +1 where a uniform number is below 1/2, else -1."""
    return np.where(draws.random_sample(size) < 0.5, 1.0, -1.0)


def random_permutation(draws: RandomState, size: int) -> np.ndarray:
    """The stable argsort of `size` uniform numbers, int64."""
    return np.argsort(draws.random_sample(size), kind="stable").astype(np.int64)


def random_angles(draws: RandomState, size: int) -> np.ndarray:
    """`size` angles, uniform on [0, 2 pi), float64."""
    return 2 * np.pi * draws.random_sample(size)


def random_pairs(draws: RandomState, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` pairs of different indices below `size` (at least 2): int64 arrays i and j.

    i = floor(size u), j = floor((size - 1) u'), and j + 1 where j is not below i; all of u are drawn before u'.
    """
    first = (size * draws.random_sample(count)).astype(np.int64)
    second = ((size - 1) * draws.random_sample(count)).astype(np.int64)
    return first, second + (second >= first)
