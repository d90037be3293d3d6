"""The paper's baselines, each weight on its own: `uniform` levels and scalar `kmeans`."""

from __future__ import annotations

import torch

from kquant_cli.codebooks import nearest
from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.encoders.clustering import cluster, root_mean_square, signed_sums


def kmeans_layout(shape: tuple[int, int], config: EncoderConfig) -> Layout:
    """The layout of a matrix (out_features, in_features): one scale."""
    return Layout(shape=shape, levels=config.level_count, columns=1, scale=(1, 1))


def uniform_layout(shape: tuple[int, int], config: EncoderConfig) -> Layout:
    """The layout of a matrix (out_features, in_features): no scale, or one for each group of columns."""
    rows, columns = shape
    if config.group_size == 0:
        return Layout(shape=shape, levels=config.level_count, columns=1)
    groups = -(-columns // config.group_size)
    group = config.group_size if groups > 1 else 0
    return Layout(shape=shape, levels=config.level_count, columns=1, scale=(rows, groups), group=group)


def encode_kmeans(weight: torch.Tensor, config: EncoderConfig) -> EncodedMatrix:
    """K-means of all weights of the matrix into 2^bits centroids, with one scale, the root mean square."""
    scale = root_mean_square(weight)
    points = (weight / torch.where(scale > 0, scale, 1)).reshape(-1, 1)
    peaks = scalar_peaks(points, config.level_count.bit_length() - 1).unsqueeze(1) if config.init == "peaks" else None
    codebook = cluster(points, config, peaks).float()
    codes = nearest(points, codebook.to(points.dtype)).view(weight.shape)
    layout = kmeans_layout((weight.shape[0], weight.shape[1]), config)
    return EncodedMatrix(layout, codes, codebook, scale=scale.float(), record=_record(config))


def scalar_peaks(points: torch.Tensor, bits: int) -> torch.Tensor:
    """The sums +-c1 +-c2 ... of the first sign steps of points (n, 1) by themselves, c_k = |r_k|_1 / n; (2^bits,)."""
    residual, sizes = points.abs(), []
    for _ in range(bits):
        sizes.append(residual.mean())
        residual = (residual - sizes[-1]).abs()
    return signed_sums(torch.stack(sizes))


def encode_uniform(weight: torch.Tensor, config: EncoderConfig) -> EncodedMatrix:
    """Evenly spaced levels: over the tensor's range (group_size 0), or symmetric with a scale a group of columns.

    Group form, the field's usual one: with K levels, q = round(w / s) in -K/2 .. K/2 - 1 (K odd: from
    -(K - 1)/2 to (K - 1)/2) and s = 2 max|w| / (K - 1);
    at 1 bit +-s with s = mean|w|. A last group may be short. Scales are kept in float16, or in float32 where float16
    would overflow or lose digits; the codes are taken against the rounded scale.
    """
    levels, (rows, columns) = config.level_count, weight.shape
    layout = uniform_layout((rows, columns), config)
    if config.group_size == 0:
        codebook = torch.linspace(0, 1, levels, dtype=weight.dtype, device=weight.device)
        codebook = (weight.min() + (weight.max() - weight.min()) * codebook).unsqueeze(1).float()
        codes = nearest(weight.reshape(-1, 1), codebook.to(weight.dtype)).view(weight.shape)
        return EncodedMatrix(layout, codes, codebook, record=_record(config))

    group = min(config.group_size, columns)
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
    kept = scale.half()
    fits = torch.isfinite(kept).all() and (scale[scale > 0] > torch.finfo(torch.float16).tiny).all()
    stored = kept if fits else scale.float()
    scale = stored.to(weight.dtype)
    units = padded / torch.where(scale > 0, scale, 1)
    codes = ((units - first) / step).round_().clamp_(0, levels - 1).to(torch.uint8)
    codebook = first + step * torch.arange(levels, dtype=torch.float32, device=weight.device).unsqueeze(1)
    codes = codes.view(rows, -1)[:, :columns].contiguous()
    return EncodedMatrix(layout, codes, codebook, scale=stored.squeeze(-1), record=_record(config))


def _record(config: EncoderConfig) -> Record:
    return Record(encoder=config.encoder, levels=config.level_count)
