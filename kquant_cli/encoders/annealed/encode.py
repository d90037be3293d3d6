"""The annealed encoder: rows (or columns) of the weight in a frame of two bases, coded by annealing.

    input side:   W^ = diag(scale) (Cu[codes] A^T + Cv[codes] B^T),    A = D1 T, B = D1 T D2 T^T of size in_features
    output side:  W^ = (A Cu[codes] + B Cv[codes]) diag(col_scale),    of size out_features

In the coordinates of A a row is nearly Gaussian whatever it was, and is divided by its root mean square. The annealing
(annealing.py) gives the codes, least squares (least_squares.py) the scales. Rings of few points are constant: integers
(codebooks/integer_grids.py) times a power of two near the size of the weights. Other codebooks are refitted to the
matrix by least squares, and have its size. The float16 scales are relative to that: rows of less than 6e-8 of the
matrix's root mean square become zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.codebooks.integer_grids import grid_codebook
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.encoders.annealed.drive import NAME, drive_of, exponent_of, grid_for, record_of
from kquant_cli.encoders.annealed.in_metric import encode_in_metric, layout_in_metric, unit_losses
from kquant_cli.encoders.annealed.least_squares import fit_scales, refit_codebook
from kquant_cli.encoders.annealed.retries import anneal_with_retries
from kquant_cli.encoders.annealed.schedule import searched_errors
from kquant_cli.encoders.annealed.settings import AnnealedSettings
from kquant_cli.encoders.encoder import Encoder
from kquant_cli.encoders.expected_error import interpolated_error
from kquant_cli.encoders.metric import Metric
from kquant_cli.encoders.scale import root_mean_square
from kquant_cli.native import library

CHUNK = 2**22  # weights annealed at a time: bounds the memory beside the weight itself
SAMPLE = 2**21  # weights that the codebook's 2 K numbers are fitted to


class Annealed(Encoder[AnnealedSettings]):
    """The default."""

    name = NAME
    summary = "ours, the default: a search of the codes by annealing"
    Settings = AnnealedSettings
    spreads_error = True
    scale_dtype = torch.float16

    def refusal(self, levels: int, settings: AnnealedSettings) -> str | None:
        """A product of points has an even number of them."""
        if settings.codebook == "product" and levels % 2:
            return (
                f"`codebook: product` cannot have {levels} levels, expected an even number, since its points are pairs "
                f"of equal u"
            )
        return None

    def layout(self, shape: tuple[int, int], levels: int, settings: AnnealedSettings) -> Layout:
        """A row scale on the input side, a column scale on the output side."""
        rows, columns = shape
        by_row, grid = settings.side != "output", grid_for(levels, settings)
        bases = CoupledBases(columns if by_row else rows, settings.seed)
        if by_row:
            return Layout(shape, levels, Frame(right_u=bases.first, right_v=bases.second), scale=(rows, 1), grid=grid)
        return Layout(shape, levels, Frame(left_u=bases.first, left_v=bases.second), col_scale=True, grid=grid)

    def encode(self, weight: Tensor, levels: int, settings: AnnealedSettings) -> EncodedMatrix:
        """Arithmetic is in float32. Rows of zeros get the scale 0."""
        return _encode(weight, self.layout((weight.shape[0], weight.shape[1]), levels, settings), settings)

    def layout_in_metric(self, shape: tuple[int, int], levels: int, settings: AnnealedSettings) -> Layout | None:
        """Bases on both sides and scales of rows and columns; None where rows are to be annealed."""
        return None if settings.side == "input" else layout_in_metric(shape, levels, settings)

    def encode_in_metric(
        self, weights: Sequence[Tensor], metrics: Sequence[Metric], levels: int, settings: AnnealedSettings
    ) -> list[EncodedMatrix]:
        """Stretches of columns, each after what went wrong before (in_metric.py)."""
        return encode_in_metric(weights, metrics, levels, settings)

    def unit_losses(
        self, weights: Sequence[Tensor], metrics: Sequence[Metric], settings: AnnealedSettings
    ) -> list[float]:
        """The loss of columns that all leave the same relative squared error."""
        return unit_losses(weights, metrics, settings)

    def expected_error(self, levels: int, settings: AnnealedSettings) -> float:
        """What the search of the codebooks measured, interpolated."""
        return interpolated_error(levels, searched_errors(settings.effort))

    def caution(self, device: torch.device) -> str | None:
        """A word on annealing without the compiled loops."""
        if device.type != "cpu" or library("anneal") is not None:
            return None
        return (
            "note: no C++ compiler was found, so the annealing runs in torch, ten to thirty times slower; install g++"
        )


def _encode(weight: Tensor, layout: Layout, settings: AnnealedSettings) -> EncodedMatrix:
    by_row = settings.side != "output"
    lines = weight if by_row else weight.T
    size = lines.shape[1]
    length = max(1, CHUNK // size)
    bases = CoupledBases(size, settings.seed)
    basis = basis_for(bases.first)
    magnitude = _root_mean_square(lines.split(length))
    unit = torch.where(magnitude > 0, magnitude, 1)

    def coordinates(part: Tensor) -> Tensor:
        """Lines (n, size) in the coordinates of A, in units of the matrix's root mean square."""
        return basis.adjoint((part.contiguous() / unit).float())

    drive, expected = drive_of(layout, size, settings)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes_of_lines = codes if by_row else codes.T
    alive, trace = [], torch.zeros(len(drive.betas), device=weight.device)
    for part, chosen in zip(lines.split(length), codes_of_lines.split(length), strict=True):
        x = _normalised(coordinates(part))
        found, errors = anneal_with_retries(x, bases, drive, expected)
        chosen.copy_(found)
        trace += errors * (len(part) / len(lines))
        alive.append(x.square().sum(dim=1) > 0)

    if layout.grid is None:
        fitted = (
            torch.cat(alive).nonzero().squeeze(1)
        )  # zeros, which a scale of 0 makes exact, must not draw it to them
        fitted = fitted[:: -(-len(fitted) * size // SAMPLE) or 1]
        if len(fitted):
            x = _normalised(coordinates(lines[fitted]))
            drive = replace(drive, codebook=refit_codebook(x, codes_of_lines[fitted], bases, drive.codebook))
        codebook, step = drive.codebook.to(weight.device), unit
    else:
        layout = replace(layout, exponent=exponent_of(float(unit)))
        codebook, step = grid_codebook(layout.grid, 0, weight.device), torch.full_like(unit, 2.0**layout.exponent)

    scales = []
    for part, chosen in zip(lines.split(length), codes_of_lines.split(length), strict=True):
        u, v = (codebook[:, column][chosen.long()] for column in (0, 1))
        scales.append(fit_scales(coordinates(part), u + bases.couple(v)))
    scale = (torch.cat(scales) * (unit / step).float().squeeze()).half()
    return EncodedMatrix(
        layout,
        codes,
        codebook * step.float(),
        scale=scale.unsqueeze(1) if by_row else None,
        col_scale=None if by_row else scale,
        record=record_of(layout.levels, drive.codebook, trace.sqrt()),
    )


def _root_mean_square(parts: Sequence[Tensor]) -> Tensor:
    """sqrt(mean w^2) (1, 1) of all entries of the parts, a part in memory at a time."""
    sizes = torch.cat([root_mean_square(part.contiguous()) for part in parts], dim=1)
    counts = torch.tensor([[part.numel() for part in parts]], dtype=sizes.dtype, device=sizes.device)
    return root_mean_square(sizes * (counts / counts.mean()).sqrt())


def _normalised(x: Tensor) -> Tensor:
    """Rows (n, size) of unit mean square; rows of zeros stay zeros."""
    size = x.square().mean(dim=1, keepdim=True).sqrt()
    return x / torch.where(size > 0, size, 1)
