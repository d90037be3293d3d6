"""Evenly spaced levels: over the tensor's range, the paper's weaker baseline, or with a scale a group of columns.

    range    (group_size 0)  K levels from the smallest to the largest entry
    groups   W^_ij = s_ig q_ij, q in -K/2 .. K/2 - 1 (K odd: from -(K - 1)/2 to (K - 1)/2), s = 2 max|w| / (K - 1);
             at 1 bit W^ = +-s with s = mean|w|. The field's usual form. A last group may be short.

Scales of groups are float16. Where those of a matrix would over- or underflow they are kept relative to a power of two,
which the codebook has: so what a matrix takes is known before it is encoded. The codes are taken against the rounded
scale. A group of less than 1e-9 of the largest may lose digits then, which the matrix does not notice.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from pydantic import Field

from kquant_cli.codebooks import nearest
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.encoders.encoder import Encoder, EncoderSettings

LARGEST = 15  # the exponent of the largest scale, where scales are relative: below float16's 65504
SMALLEST = -126  # the exponent of the smallest normal float32
TENSOR = 2**20  # entries of a tensor with one range, for its expected error
QUANTILES = 16  # of the largest of the weights that share a scale


class UniformSettings(EncoderSettings):
    """Settings of `uniform`."""

    group_size: int = Field(128, ge=0, description="columns that share a scale; 0: one range a tensor")


class Uniform(Encoder[UniformSettings]):
    """Round to evenly spaced levels."""

    name = "uniform"
    summary = "a baseline of the paper: evenly spaced levels"
    Settings = UniformSettings
    scale_dtype = torch.float16

    def layout(self, shape: tuple[int, int], levels: int, settings: UniformSettings) -> Layout:
        """No scale, or one for each group of columns."""
        rows, columns = shape
        if settings.group_size == 0:
            return Layout(shape=shape, levels=levels, columns=1)
        groups = -(-columns // settings.group_size)
        group = settings.group_size if groups > 1 else 0
        return Layout(shape=shape, levels=levels, columns=1, scale=(rows, groups), group=group)

    def encode(self, weight: torch.Tensor, levels: int, settings: UniformSettings) -> EncodedMatrix:
        """Round to the nearest level, of the range or of the group's scale."""
        layout = self.layout((weight.shape[0], weight.shape[1]), levels, settings)
        record = Record(encoder=self.name, levels=levels)
        if settings.group_size == 0:
            codebook = torch.linspace(0, 1, levels, dtype=weight.dtype, device=weight.device)
            codebook = (weight.min() + (weight.max() - weight.min()) * codebook).unsqueeze(1).float()
            codes = nearest(weight.reshape(-1, 1), codebook.to(weight.dtype)).view(weight.shape)
            return EncodedMatrix(layout, codes, codebook, record=record)
        codes, codebook, scale = _by_groups(weight, levels, settings.group_size)
        return EncodedMatrix(layout, codes, codebook, scale=scale, record=record)

    def expected_error(self, levels: int, settings: UniformSettings) -> float:
        """That of Gaussian weights."""
        if settings.group_size == 0:
            return _expected_error(levels, TENSOR, centred=True)
        return 1 - 2 / math.pi if levels == 2 else _expected_error(levels, settings.group_size, centred=False)


def _by_groups(weight: torch.Tensor, levels: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (rows, columns), codebook (levels, 1) and scales (rows, groups) in float16."""
    rows, columns = weight.shape
    group = min(group_size, columns)
    groups = -(-columns // group)
    padded = torch.nn.functional.pad(weight, (0, groups * group - columns)).view(rows, groups, group)
    sizes = torch.full((groups, 1), float(group), dtype=weight.dtype, device=weight.device)
    sizes[-1] -= groups * group - columns
    if levels == 2:
        scale = padded.abs().sum(-1, keepdim=True) / sizes
        first, step = -1.0, 2.0
    else:
        scale = padded.abs().amax(-1, keepdim=True) * 2 / (levels - 1)
        first, step = -float(levels // 2), 1.0
    unit = _unit(scale)
    stored = (scale / unit).half()
    scale = stored.to(weight.dtype) * unit
    units = padded / torch.where(scale > 0, scale, 1)
    codes = ((units - first) / step).round_().clamp_(0, levels - 1).to(torch.uint8)
    codebook = first + step * torch.arange(levels, dtype=torch.float32, device=weight.device).unsqueeze(1)
    return codes.view(rows, -1)[:, :columns].contiguous(), codebook * unit, stored.squeeze(-1)


def _unit(scale: torch.Tensor) -> float:
    """The power of two that scales are relative to: 1 where float16 has all of them with all its digits."""
    kept, above = scale.half(), scale[scale > 0]
    if torch.isfinite(kept).all() and (above > torch.finfo(torch.float16).tiny).all():
        return 1.0
    return 2.0 ** max(math.frexp(float(scale.max()))[1] - LARGEST, SMALLEST)


@cache
def _expected_error(levels: int, count: int, centred: bool) -> float:
    """The relative squared error of `count` Gaussian weights that share a scale, over what the largest may be.

    Levels are centred around zero, or have one below zero more than above.
    """
    from scipy.special import ndtri  # noqa: PLC0415 (not spent where no error is asked for)

    first = (levels - 1) / 2 if centred else levels // 2
    shares = ((k + 0.5) / QUANTILES for k in range(QUANTILES))
    below = (share ** (1 / count) for share in shares)  # P(w < m): of the largest entry, or of the largest magnitude
    largest = (float(ndtri(p if centred else (1 + p) / 2)) for p in below)
    errors = (_error_within(m, [2 * m / (levels - 1) * (k - first) for k in range(levels)]) for m in largest)
    return sum(errors) / QUANTILES


def _error_within(largest: float, points: list[float]) -> float:
    """E (w - nearest point)^2 of a standard normal w in [-largest, largest], from the moments of each interval."""
    from scipy.special import ndtr  # noqa: PLC0415

    borders = [-largest, *((a + b) / 2 for a, b in pairwise(points)), largest]
    total = 0.0
    for point, (low, high) in zip(points, pairwise(borders), strict=True):
        mass = float(ndtr(high) - ndtr(low))
        first = _density(low) - _density(high)
        second = mass + low * _density(low) - high * _density(high)
        total += second - 2 * point * first + point * point * mass
    return total


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
