"""Constant codebooks: rings of points on a grid of 8-bit integers, for 2 to 24 levels and for 32.

    codebook = integers 2^(exponent - 7),        integers (K, 2) from -127 to 127, by name in integer_grids.json

So u and v are below 1 where the exponent is 0. For an even K point k + K / 2 is the negative of point k. For 4, 8, 16
and 32 points the mirror images in both axes are points, too, and for 4, 8 and 16 all numbers are odd.

scripts/search_integer_grids.py found them. Bundles name them, so that what a name means never changes: a test pins the
file's SHA-256.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).with_name("integer_grids.json")
LARGEST = 127  # magnitude of an integer
LEAST_EXPONENT, MOST_EXPONENT = -119, 127  # every number of the codebook is then a normal one in float32


def ring_name(levels: int) -> str:
    """What the ring of so many points is called."""
    return f"ring-{levels}"


@cache
def integer_grids() -> dict[str, tuple[tuple[int, int], ...]]:
    """The points of every ring by its name."""
    tables = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: tuple((u, v) for u, v in points) for name, points in tables.items()}


@cache
def grid_codebook(name: str, exponent: int, device: torch.device) -> Tensor:
    """The codebook (K, 2), float32 and exact, on that device; made once, so that all matrices with it share it."""
    with torch.inference_mode(False):  # else autograd could never keep it
        return torch.tensor(integer_grids()[name], dtype=torch.float32, device=device) * math.ldexp(1.0, exponent - 7)
