"""The annealed encoder in a metric (encoders/metric.py): stretches of columns, each after what went wrong before.

Both sides are rotated: W' = A^T diag(r) W R and H' = R^T H R + damping. With H' = (I + U) D (I + U)^T, U strictly upper
triangular, the loss is a sum over columns, sum_j D_j |w'_j + (sum_i<j e_i U_ij) - w^_j|^2, which is made small column
after column (LDLQ, arXiv 2307.13304, and OPTQ, arXiv 2210.17323). Here a stretch J of columns is annealed at once, each
column a line of the annealing (annealing.py), for what is wanted of it:

    w'_J + E_before U_before,J (I + U_JJ)^-1,    E = w' - w^ of the columns before

    W^ = diag(1 / r) (A Cu[codes] + B Cv[codes]) diag(col_scale) R^T

The row scale r evens out what an error costs the outputs, as the channel scale does for inputs
(calibration/channel_scaling.py): r_i = (g_i / |w_i|^2)^(1/4). The damping is the one of `DAMPINGS` of which white
errors, fed back by one half of the tokens' H, cost least by the other half's.

Matrices of one shape go through together, so that a stretch is many lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kquant_cli.bases import Basis, BasisSpec, CoupledBases, basis_for
from kquant_cli.codebooks.integer_grids import grid_codebook
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.encoders.annealed.drive import drive_of, exponent_of, grid_for, record_of
from kquant_cli.encoders.annealed.least_squares import fit_scales
from kquant_cli.encoders.annealed.retries import anneal_with_retries
from kquant_cli.encoders.annealed.settings import AnnealedSettings
from kquant_cli.encoders.metric import Metric
from kquant_cli.encoders.scale import root_mean_square

STRETCH = 16  # columns annealed at once: fewer are closer to the metric, more are faster
DAMPINGS = (0.01, 0.03, 0.1)  # of the mean of H's diagonal
ROW_LIMIT = 16.0  # r lies in [1 / ROW_LIMIT, ROW_LIMIT]
FLOOR = 1e-4  # of the mean: no row's weight or energy counts as less


def layout_in_metric(shape: tuple[int, int], levels: int, settings: AnnealedSettings) -> Layout:
    """Bases on both sides, a row scale and a column scale."""
    rows, columns = shape
    left, right = CoupledBases(rows, settings.seed), _right(columns, settings.seed)
    frame = Frame(left_u=left.first, left_v=left.second, right_u=right, right_v=right)
    return Layout(shape, levels, frame, scale=(rows, 1), col_scale=True, grid=grid_for(levels, settings))


def encode_in_metric(
    weights: Sequence[Tensor], metrics: Sequence[Metric], levels: int, settings: AnnealedSettings
) -> list[EncodedMatrix]:
    """Encode `weights`, all (out_features, in_features), each in its metric; arithmetic is in float32 on their device.

    Rows of zeros stay next to zero, as all rows share their columns' scales.
    """
    rows, columns = weights[0].shape
    layout, device = layout_in_metric((rows, columns), levels, settings), weights[0].device
    left, right = basis_for(CoupledBases(rows, settings.seed).first), basis_for(_right(columns, settings.seed))
    row_scales = torch.stack([_row_scale(w, m.outputs) for w, m in zip(weights, metrics, strict=True)])
    scaled = torch.stack([weight.float() for weight in weights]) / row_scales.float().unsqueeze(2)
    units = [float(root_mean_square(matrix)) or 1.0 for matrix in scaled]
    exponents = [0 if layout.grid is None else exponent_of(unit) for unit in units]
    steps = units if layout.grid is None else [2.0**exponent for exponent in exponents]
    scaled /= torch.tensor(steps, device=device)[:, None, None]
    lines = _adjoint(left, _adjoint(right, scaled).transpose(1, 2))
    del scaled

    drive, expected = drive_of(layout, rows, settings)
    feedback = _feedback(*_rotated_halves(metrics, right, device), expected)
    book = drive.codebook.to(device) if layout.grid is None else grid_codebook(layout.grid, 0, device)
    bases = CoupledBases(rows, settings.seed)

    def anneal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, what they stand for, and its scale in float16 of lines x (lines, rows)."""
        size = x.square().mean(dim=1, keepdim=True).sqrt()
        codes, _ = anneal_with_retries(x / torch.where(size > 0, size, 1), bases, drive, expected)
        decoded = book[:, 0][codes.long()] + bases.couple(book[:, 1][codes.long()])
        return codes, decoded, fit_scales(x, decoded).half()

    codes, col_scale = _encode_lines(lines, feedback, anneal)
    record = replace(record_of(levels, drive.codebook, drive.betas), trace=())  # one would be of all these matrices
    return [
        EncodedMatrix(
            replace(layout, exponent=exponent),
            codes[number].T.contiguous(),
            book * step,
            scale=row_scales[number].unsqueeze(1),
            col_scale=col_scale[number],
            record=record,
        )
        for number, (exponent, step) in enumerate(zip(exponents, steps, strict=True))
    ]


def unit_losses(weights: Sequence[Tensor], metrics: Sequence[Metric], settings: AnnealedSettings) -> list[float]:
    """The loss in its metric of each of `weights`, of one shape, for a relative squared error of 1 in every column.

    sum_j D_j |w'_j|^2 times the mean over the rows of g_i / r_i^2, g of mean 1: what `encode_in_metric` makes small.
    """
    columns, device = weights[0].shape[1], weights[0].device
    right = basis_for(_right(columns, settings.seed))
    row_scales = torch.stack([_row_scale(w, m.outputs) for w, m in zip(weights, metrics, strict=True)]).float()
    lines = _adjoint(right, torch.stack([weight.float() for weight in weights]) / row_scales.unsqueeze(2))
    halves = _rotated_halves(metrics, right, device)
    unit, sizes = _feedback(*halves, 0.0), _sizes(metrics, device)
    inverse = torch.linalg.solve_triangular(
        unit + torch.eye(columns, device=device), halves[0] + halves[1], upper=True, unitriangular=True
    )
    conditional = torch.linalg.solve_triangular(
        unit + torch.eye(columns, device=device), inverse.transpose(1, 2), upper=True, unitriangular=True
    ).diagonal(dim1=1, dim2=2)
    columns_lost = (conditional * lines.square().sum(dim=1)).sum(dim=1) * sizes
    of_rows = []
    for scale, metric in zip(row_scales, metrics, strict=True):
        outputs = torch.ones_like(scale) if metric.outputs is None else metric.outputs.to(scale)
        of_rows.append(float((outputs * scale.square()).mean() / outputs.mean()))
    return [float(lost) * rows for lost, rows in zip(columns_lost, of_rows, strict=True)]


def _encode_lines(
    lines: Tensor, feedback: Tensor, anneal: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Codes (matrices, columns, rows) and scales (matrices, columns) of `lines` (matrices, columns, rows).

    `feedback` is U (matrices, columns, columns).
    """
    matrices, columns, rows = lines.shape
    codes, errors = torch.empty(lines.shape, dtype=torch.uint8, device=lines.device), torch.zeros_like(lines)
    scales = torch.empty(matrices, columns, dtype=torch.float16, device=lines.device)
    for begin in range(0, columns, STRETCH):
        now, before = slice(begin, min(begin + STRETCH, columns)), slice(0, begin)
        within = feedback[:, now, now] + torch.eye(now.stop - begin, device=lines.device)
        back = torch.linalg.solve_triangular(within, feedback[:, before, now], upper=True, left=False)
        wanted = lines[:, now] + back.transpose(1, 2) @ errors[:, before]
        found, decoded, scale = anneal(wanted.reshape(-1, rows))
        codes[:, now], scales[:, now] = found.view(wanted.shape), scale.view(matrices, -1)
        errors[:, now] = lines[:, now] - (scale.float().unsqueeze(1) * decoded).view(wanted.shape)
    return codes, scales


def _right(columns: int, seed: int) -> BasisSpec:
    """R; of another seed than the left bases, so that no square matrix has the same signs on both sides."""
    return BasisSpec("signed_hadamard_dct", columns, seed + 1)


def _adjoint(basis: Basis, stack: Tensor) -> Tensor:
    """The adjoint of the last dimension of a stack of matrices."""
    return basis.adjoint(stack.reshape(-1, stack.shape[-1]).contiguous()).view(stack.shape)


def _row_scale(weight: Tensor, outputs: Tensor | None) -> Tensor:
    """1 / r (rows,) float16, what a row is divided by before; of geometric mean 1 but for the limits."""
    energy = weight.double().square().sum(dim=1)
    outputs = torch.ones_like(energy) if outputs is None else outputs.to(energy)
    of_rows = [values.clamp_min(FLOOR * float(values.mean())) for values in (outputs, energy)]
    if not all(float(values.min()) > 0 for values in of_rows):
        return torch.ones(len(energy), dtype=torch.float16, device=weight.device)
    logarithms = (of_rows[1].log() - of_rows[0].log()) / 4
    limit = math.log(ROW_LIMIT)
    return (logarithms - logarithms.mean()).clamp(-limit, limit).exp().half()


def _rotated_halves(metrics: Sequence[Metric], right: Basis, device: torch.device) -> tuple[Tensor, Tensor]:
    """R^T H R (matrices, columns, columns) of each half of the tokens, of mean diagonal 1 together."""
    sizes = _sizes(metrics, device)[:, None, None]
    first = torch.stack([metric.first.to(device).float() for metric in metrics]) / sizes
    second = torch.stack([metric.second.to(device).float() for metric in metrics]) / sizes
    return _both_sides(right, first), _both_sides(right, second)


def _both_sides(right: Basis, stack: Tensor) -> Tensor:
    return _adjoint(right, _adjoint(right, stack).transpose(1, 2))


def _sizes(metrics: Sequence[Metric], device: torch.device) -> Tensor:
    """The mean diagonal of H (matrices,); 1 where there is nothing."""
    sizes = torch.stack([metric.inputs.diagonal().mean().to(device) for metric in metrics])
    return torch.where(sizes > 0, sizes, 1)


def _feedback(first: Tensor, second: Tensor, expected: float) -> Tensor:
    """U (matrices, columns, columns) of H' = first + second, with the best damping for each matrix.

    `expected`: the relative squared error that is left of a column.
    """
    losses = torch.stack(
        [
            _held_out_loss(first, second, damping, expected) + _held_out_loss(second, first, damping, expected)
            for damping in DAMPINGS
        ]
    )
    best = torch.tensor(DAMPINGS, device=first.device)[losses.nan_to_num(torch.inf, torch.inf).argmin(dim=0)]
    return _factor((first + second).double(), best.double()).float()


def _factor(h: Tensor, damping: Tensor) -> Tensor:
    """U, strictly upper triangular, with h + damping I = (I + U) D (I + U)^T; NaN where h is too far from positive."""
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    damped = (h + h.transpose(1, 2)) / 2 + damping[:, None, None] * eye
    lower, failed = torch.linalg.cholesky_ex(damped.flip(1, 2))
    lower[failed > 0] = torch.nan
    unit = lower / lower.diagonal(dim1=1, dim2=2).unsqueeze(1)
    return unit.flip(1, 2) - eye


def _held_out_loss(seen: Tensor, held_out: Tensor, damping: float, expected: float) -> Tensor:
    """What errors cost (matrices,) that are fed back by the H that was seen, where another counts.

    The errors are E (I + U) = N, N white with the relative energy `expected` of what column j is to be: of energy
    e_j = 1 + expected sum_i<j U_ij^2 e_i, so that a strong feedback costs, too.
    """
    mean = seen.diagonal(dim1=1, dim2=2).mean(dim=1)
    u = _factor(seen, damping * mean)
    eye = torch.eye(u.shape[-1], device=u.device)
    energy = torch.linalg.solve_triangular(
        (eye - expected * u.square()).transpose(1, 2), torch.ones_like(u[:, :, :1]), upper=False, unitriangular=True
    )
    fed_back = torch.linalg.solve_triangular(eye + u, eye.expand_as(u), upper=True, unitriangular=True)
    cost = ((fed_back @ held_out) * fed_back).sum(dim=2, keepdim=True)
    return (cost * energy).sum(dim=(1, 2))
