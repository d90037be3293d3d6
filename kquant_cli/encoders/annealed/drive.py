"""What drives the annealing of a matrix, codebook and schedule, and the record of how it went."""

from __future__ import annotations

import math

from torch import Tensor

from kquant_cli.codebooks.integer_grids import LEAST_EXPONENT, MOST_EXPONENT, integer_grids, ring_name
from kquant_cli.encoded import Layout, Record
from kquant_cli.encoders.annealed.schedule import (
    HARD_SWEEPS,
    MOVING,
    SWEEPS,
    better_kind,
    expected_errors,
    find_schedule,
    integer_points,
    points,
)
from kquant_cli.encoders.annealed.settings import AnnealedSettings
from kquant_cli.encoders.annealed.sweeps import Sweeps, moving_positions

NAME = "annealed"
TRACED = 50  # numbers of the trace that are kept


def grid_for(levels: int, settings: AnnealedSettings) -> str | None:
    """The constant codebook for so many levels, which are rings; None where there is none."""
    name = ring_name(levels)
    return name if kind_of(levels, settings) == "ring" and name in integer_grids() else None


def kind_of(levels: int, settings: AnnealedSettings) -> str:
    """Ring or product."""
    return better_kind(levels, settings.effort) if settings.codebook == "auto" else settings.codebook


def exponent_of(size: float) -> int:
    """The power of two that is nearest to the size of the weights, in ratio, of those that a codebook can have."""
    fraction, exponent = math.frexp(size)
    return min(max(exponent - (fraction < math.sqrt(0.5)), LEAST_EXPONENT), MOST_EXPONENT)


def drive_of(layout: Layout, size: int, settings: AnnealedSettings) -> tuple[Sweeps, float]:
    """What drives the annealing of lines of that size, and the squared error to be expected of unit lines."""
    levels, effort, kind = layout.levels, settings.effort, kind_of(layout.levels, settings)
    schedule = find_schedule(kind, levels, effort)
    if layout.grid is None:
        codebook = points(kind, levels, schedule)
    else:
        codebook = integer_points(integer_grids()[layout.grid], schedule)
    expected = expected_errors(levels, effort).get(kind, math.inf)
    moving = moving_positions(HARD_SWEEPS, size, MOVING, settings.seed)
    return Sweeps(codebook, schedule.betas(SWEEPS[effort]), schedule.momenta(SWEEPS[effort]), moving), expected


def record_of(levels: int, codebook: Tensor, trace: Tensor) -> Record:
    """The record of a matrix whose annealing left that trace (sweeps,)."""
    step = -(-len(trace) // TRACED)
    return Record(
        encoder=NAME,
        levels=levels,
        basis="hadamard_dct",
        iterations=len(trace),
        trace=tuple(float(f"{value:.4g}") for value in trace[::step].tolist()),
        u_max=float(codebook[:, 0].abs().max()),
        v_max=float(codebook[:, 1].abs().max()),
    )
