"""Encoders: weight (out_features, in_features) -> EncodedMatrix. The registry has one line an encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import SIDES, EncodedMatrix, Layout
from kquant_cli.encoders.annealed import annealed_layout, encode_annealed
from kquant_cli.encoders.greedy import encode_greedy, greedy_layout
from kquant_cli.encoders.scalar import encode_kmeans, encode_uniform, kmeans_layout, uniform_layout

__all__ = ["ENCODERS", "Encoder", "check_basis", "encode", "encoded_bytes"]


@dataclass(frozen=True)
class Encoder:
    """`encode` a weight; the `layout` that this gives, known from shape and settings alone."""

    encode: Callable[[torch.Tensor, EncoderConfig], EncodedMatrix]
    layout: Callable[[tuple[int, int], EncoderConfig], Layout]


ENCODERS: dict[str, Encoder] = {
    "annealed": Encoder(encode_annealed, annealed_layout),
    "greedy": Encoder(encode_greedy, greedy_layout),
    "uniform": Encoder(encode_uniform, uniform_layout),
    "kmeans": Encoder(encode_kmeans, kmeans_layout),
}


def check_basis(shape: tuple[int, int], config: EncoderConfig) -> None:
    """Raise KQuantError when a basis of the settings cannot have a size of the matrix (out_features, in_features)."""
    frame = ENCODERS[config.encoder].layout(shape, config).frame
    for side in SIDES:
        if (spec := getattr(frame, side)) is not None:
            spec.make()


def encoded_bytes(shape: tuple[int, int], config: EncoderConfig) -> int:
    """Bytes that a matrix (out_features, in_features) takes with these settings, but for a channel scale."""
    layout = ENCODERS[config.encoder].layout(shape, config)
    scale_bytes = 2 if config.encoder in ("annealed", "uniform") else 4
    sizes = {"weight_codes": 1, "weight_scale": scale_bytes, "weight_col_scale": scale_bytes}
    return sum(math.prod(size) * sizes.get(name, 4) for name, size in layout.tensor_shapes().items())


def encode(weight: torch.Tensor, config: EncoderConfig, channel_scale: torch.Tensor | None = None) -> EncodedMatrix:
    """Encode `weight` (out_features, in_features), of any float dtype, on its device; its record has the error.

    With a `channel_scale` d (in_features,) it is W diag(d) that is encoded, and decoding divides by d. Arithmetic is in
    float32, or float64 for a float64 weight (but for the annealed encoder).

    Raises
    ------
    ValueError
        The weight is not a matrix of finite numbers.
    KQuantError
        The basis cannot have a size of the matrix.
    """
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"expected a matrix with entries, found shape {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise ValueError("the weight has entries that are not finite")
    source = str(weight.dtype).removeprefix("torch.")
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if channel_scale is None:
        encoded = ENCODERS[config.encoder].encode(weight, config)
    else:
        channel_scale = channel_scale.to(weight.device)
        encoded = ENCODERS[config.encoder].encode(weight * channel_scale.to(weight.dtype), config)
        encoded = replace(encoded, channel_scale=channel_scale)
    assert encoded.record is not None
    record = replace(encoded.record, relative_error=_relative_error(weight, encoded))
    layout = replace(encoded.layout, dtype=source, channel_scale=channel_scale is not None)
    return replace(encoded, layout=layout, record=record)


def _relative_error(weight: torch.Tensor, encoded: EncodedMatrix) -> float:
    norm = _norm(weight)
    return _norm(encoded.decode(weight.dtype).sub_(weight)) / norm if norm else 0.0


def _norm(matrix: torch.Tensor) -> float:
    """|matrix|_F, in units of its largest entry, so that no square over- or underflows."""
    largest = float(matrix.abs().max())
    return largest * float(torch.linalg.vector_norm(matrix / largest)) if largest else 0.0
