"""Matrices of every formula that a layout can have, whether an encoder makes it or not."""

from __future__ import annotations

from typing import Any

import torch

from kquant_cli.bases import BasisSpec
from kquant_cli.encoded import EncodedMatrix, Frame, Layout

ROWS, COLUMNS = 24, 40


def random_matrix(levels: int, **layout: Any) -> EncodedMatrix:
    """Random codes and scales."""
    generator = torch.Generator().manual_seed(levels)
    made = Layout((ROWS, COLUMNS), levels, **layout)
    scale = torch.rand(made.scale, generator=generator).half() + 0.5 if made.scale else None
    return EncodedMatrix(
        made,
        torch.randint(levels, (ROWS, COLUMNS), generator=generator).to(torch.uint8),
        torch.randn(levels, made.columns, generator=generator),
        scale,
        torch.rand(COLUMNS, generator=generator).half() + 0.5 if made.col_scale else None,
        torch.rand(COLUMNS, generator=generator).half() + 0.5 if made.channel_scale else None,
    )


def spec(kind: str, size: int, seed: int = 3) -> BasisSpec:
    return BasisSpec(kind, size, seed)


FRAMES = {
    "none": Frame(),
    "paper": Frame(left_v=spec("qr", ROWS), right_v=spec("dct", COLUMNS, 0)),
    "input side": Frame(
        right_u=spec("signed_hadamard_dct", COLUMNS), right_v=spec("twice_signed_hadamard_dct", COLUMNS)
    ),
    "output side": Frame(left_u=spec("signed_hadamard_dct", ROWS), left_v=spec("twice_signed_hadamard_dct", ROWS)),
    "same left": Frame(left_u=spec("qr", ROWS), left_v=spec("qr", ROWS), right_u=spec("qr", COLUMNS)),
    "all": Frame(spec("qr", ROWS), spec("qr", COLUMNS), spec("qr", ROWS, 4), spec("qr", COLUMNS, 4)),
    "output side, one right": Frame(
        left_u=spec("signed_hadamard_dct", ROWS),
        right_u=spec("signed_hadamard_dct", COLUMNS, 4),
        left_v=spec("twice_signed_hadamard_dct", ROWS),
        right_v=spec("signed_hadamard_dct", COLUMNS, 4),
    ),
    "one right": Frame(right_u=spec("signed_hadamard_dct", COLUMNS), right_v=spec("signed_hadamard_dct", COLUMNS)),
}


PARTS: dict[str, dict[str, Any]] = {
    "codes alone": {},
    "one scale": {"scale": (1, 1)},
    "all scales": {"scale": (ROWS, 1), "col_scale": True, "channel_scale": True},
    "transposed": {"transposed": True},
}
LEVELS = (2, 3, 4, 8, 12, 16, 200, 256)  # of each kind of word; the products have tests of their own
# Every frame with all parts. The levels go round, two further for the next parts and one further for the next frame:
# every number of them meets three parts and three frames.
FORMULAS = [
    (frame, parts, LEVELS[(i + 2 * j) % len(LEVELS)]) for i, frame in enumerate(FRAMES) for j, parts in enumerate(PARTS)
]
