"""The annealed encoder: rows (or columns) of the weight in a frame of two bases, coded by annealing.

    input side:   W^ = diag(scale) (Cu[codes] A^T + Cv[codes] B^T),    A = D1 T, B = D1 T D2 T^T of size in_features
    output side:  W^ = (A Cu[codes] + B Cv[codes]) diag(col_scale),    of size out_features

In the coordinates of A a row is nearly Gaussian whatever it was, and is divided by its root mean square. The annealing
(annealing.py) gives the codes; codebook and scales are then refitted by least squares (least_squares.py). The codebook
has the size of the weights, the float16 scales are relative to it: rows of less than 6e-8 of the matrix's root mean
square become zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kquant_cli.bases import BasisSpec
from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix, Frame, Layout, Record
from kquant_cli.encoders.annealed.annealing import Coupling, Sweeps, moving_positions
from kquant_cli.encoders.annealed.least_squares import fit_scales, refit_codebook
from kquant_cli.encoders.annealed.retries import anneal_steadily
from kquant_cli.encoders.annealed.schedule import (
    HARD_SWEEPS,
    MOVING,
    SWEEPS,
    better_kind,
    expected_errors,
    find_schedule,
    points,
)
from kquant_cli.encoders.clustering import root_mean_square

CHUNK = 2**22  # weights annealed at a time: bounds the memory beside the weight itself
SAMPLE = 2**21  # weights that the codebook's 2 K numbers are fitted to
TRACED = 50  # numbers of the trace that are kept


def annealed_layout(shape: tuple[int, int], config: EncoderConfig) -> Layout:
    """The layout of a matrix (out_features, in_features)."""
    rows, columns = shape
    size = columns if config.side == "input" else rows
    a, b = (BasisSpec(f"{kind}_hadamard_dct", size, config.seed) for kind in ("signed", "twice_signed"))
    if config.side == "input":
        return Layout(shape, config.level_count, Frame(right_u=a, right_v=b), scale=(rows, 1))
    return Layout(shape, config.level_count, Frame(left_u=a, left_v=b), col_scale=True)


def encode_annealed(weight: Tensor, config: EncoderConfig) -> EncodedMatrix:
    """Encode `weight` (out_features, in_features); arithmetic is in float32. Rows of zeros get the scale 0."""
    layout = annealed_layout((weight.shape[0], weight.shape[1]), config)
    by_row = config.side == "input"
    lines = weight if by_row else weight.T
    size = lines.shape[1]
    length = max(1, CHUNK // size)
    basis = BasisSpec("signed_hadamard_dct", size, config.seed).make()
    coupling = Coupling.of(size, config.seed, weight.device)
    magnitude = _root_mean_square(lines.split(length))
    unit = torch.where(magnitude > 0, magnitude, 1)

    def coordinates(part: Tensor) -> Tensor:
        """Lines (n, size) in the coordinates of A, in units of the matrix's root mean square."""
        return basis.adjoint((part.contiguous() / unit).float())

    drive, expected = _drive(config, size)
    codebook = drive.codebook
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes_of_lines = codes if by_row else codes.T
    alive, trace = [], torch.zeros(len(drive.betas), device=weight.device)
    for part, chosen in zip(lines.split(length), codes_of_lines.split(length), strict=True):
        x = _normalised(coordinates(part))
        found, errors = anneal_steadily(x, coupling, drive, expected)
        chosen.copy_(found)
        trace += errors * (len(part) / len(lines))
        alive.append(x.square().sum(dim=1) > 0)

    # zeros, which a scale of 0 makes exact, must not draw the codebook to them
    fitted = torch.cat(alive).nonzero().squeeze(1)
    fitted = fitted[:: -(-len(fitted) * size // SAMPLE) or 1]
    if len(fitted):
        x = _normalised(coordinates(lines[fitted]))
        codebook = refit_codebook(x, codes_of_lines[fitted], coupling, codebook)
    codebook = codebook.to(weight.device)

    scales = []
    for part, chosen in zip(lines.split(length), codes_of_lines.split(length), strict=True):
        u, v = (codebook[:, column][chosen.long()] for column in (0, 1))
        scales.append(fit_scales(coordinates(part), u + coupling.apply(v)))
    scale = torch.cat(scales).half()
    return EncodedMatrix(
        layout,
        codes,
        codebook * unit.float(),
        scale=scale.unsqueeze(1) if by_row else None,
        col_scale=None if by_row else scale,
        record=_record(config, codebook, trace.sqrt()),
    )


def _drive(config: EncoderConfig, size: int) -> tuple[Sweeps, float]:
    """What drives the annealing of lines of that size, and the squared error to be expected of unit lines."""
    levels, sweeps = config.level_count, SWEEPS[config.effort]
    kind = better_kind(levels, config.effort) if config.codebook == "auto" else config.codebook
    schedule = find_schedule(kind, levels, config.effort)
    codebook = points(kind, levels, schedule)
    expected = expected_errors(levels, config.effort).get(kind, math.inf)
    moving = moving_positions(HARD_SWEEPS, size, MOVING, config.seed)
    return Sweeps(codebook, schedule.betas(sweeps), schedule.momenta(sweeps), moving), expected


def _root_mean_square(parts: Sequence[Tensor]) -> Tensor:
    """sqrt(mean w^2) (1, 1) of all entries of the parts, a part in memory at a time."""
    sizes = torch.cat([root_mean_square(part.contiguous()) for part in parts], dim=1)
    counts = torch.tensor([[part.numel() for part in parts]], dtype=sizes.dtype, device=sizes.device)
    return root_mean_square(sizes * (counts / counts.mean()).sqrt())


def _normalised(x: Tensor) -> Tensor:
    """Rows (n, size) of unit mean square; rows of zeros stay zeros."""
    size = x.square().mean(dim=1, keepdim=True).sqrt()
    return x / torch.where(size > 0, size, 1)


def _record(config: EncoderConfig, codebook: Tensor, trace: Tensor) -> Record:
    step = -(-len(trace) // TRACED)
    return Record(
        encoder=config.encoder,
        levels=config.level_count,
        basis="hadamard_dct",
        iterations=len(trace),
        trace=tuple(float(f"{value:.4g}") for value in trace[::step].tolist()),
        u_max=float(codebook[:, 0].abs().max()),
        v_max=float(codebook[:, 1].abs().max()),
    )
