"""The annealed encoder: rows (or columns) of the weight in a frame of two bases, coded by annealing.

    input side:   W^ = diag(scale) (Cu[codes] A^T + Cv[codes] B^T),    A = D1 T, B = D1 T D2 T^T of size in_features
    output side:  W^ = (A Cu[codes] + B Cv[codes]) diag(col_scale),    of size out_features

In the coordinates of A a row is nearly Gaussian whatever it was, and is divided by its root mean square. The annealing
(sweeps.py) gives the codes; codebook and scales are then refitted by least squares (refit.py). The codebook has the
size of the weights, the float16 scales are relative to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.bases import BasisSpec
from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix, Frame, Layout, Record
from kquant_cli.encoders.annealed.refit import SAMPLE, fit_scales, refit_codebook
from kquant_cli.encoders.annealed.schedule import HARD_SWEEPS, MOVING, SWEEPS, better_kind, find_schedule, points
from kquant_cli.encoders.annealed.sweeps import Coupling, Sweeps, anneal, moving_positions
from kquant_cli.encoders.clustering import root_mean_square

CHUNK = 2**22  # weights annealed at a time: bounds the memory beside the weight itself
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
    """Encode `weight` (out_features, in_features); arithmetic is in float32."""
    layout = annealed_layout((weight.shape[0], weight.shape[1]), config)
    lines = weight if config.side == "input" else weight.T
    size = lines.shape[1]
    basis = BasisSpec("signed_hadamard_dct", size, config.seed).make()
    coupling = Coupling.of(size, config.seed, weight.device)
    magnitude = root_mean_square(weight)
    unit = torch.where(magnitude > 0, magnitude, 1)

    def coordinates(part: Tensor) -> Tensor:
        """Lines (n, size) in the coordinates of A, in units of the matrix's root mean square."""
        return basis.adjoint((part / unit).float())

    sweeps = SWEEPS[config.effort]
    kind = better_kind(config.level_count, config.effort) if config.codebook == "auto" else config.codebook
    schedule = find_schedule(kind, config.level_count, config.effort)
    codebook = points(kind, config.level_count, schedule)
    moving = moving_positions(HARD_SWEEPS, size, MOVING, config.seed)
    drive = Sweeps(codebook, schedule.betas(sweeps), schedule.momenta(sweeps), moving)
    length = max(1, CHUNK // size)
    parts = [anneal(_normalised(coordinates(part)), coupling, drive) for part in lines.split(length)]
    codes = torch.cat([found for found, _ in parts])
    shares = torch.tensor([len(part) / len(lines) for part in lines.split(length)])
    trace = (torch.stack([trace for _, trace in parts]).cpu() * shares[:, None]).sum(dim=0).sqrt()

    step = -(-lines.numel() // SAMPLE)
    codebook = refit_codebook(_normalised(coordinates(lines[::step])), codes[::step], coupling, codebook)
    scales = [
        fit_scales(coordinates(part), codebook[:, 0][chosen.long()] + coupling.apply(codebook[:, 1][chosen.long()]))
        for part, chosen in zip(lines.split(length), codes.split(length), strict=True)
    ]
    scale = torch.cat(scales).half()
    by_row = config.side == "input"
    return EncodedMatrix(
        layout,
        codes if by_row else codes.T.contiguous(),
        codebook * unit.float(),
        scale=scale.unsqueeze(1) if by_row else None,
        col_scale=None if by_row else scale,
        record=_record(config, codebook, trace),
    )


def _normalised(x: Tensor) -> Tensor:
    """Rows of unit mean square; rows of zeros stay zeros."""
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
