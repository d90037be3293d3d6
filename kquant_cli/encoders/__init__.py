"""Encoders: weight (out_features, in_features) -> EncodedMatrix. The registry has one line an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix
from kquant_cli.encoders.greedy import encode_greedy
from kquant_cli.encoders.scalar import encode_kmeans, encode_uniform

__all__ = ["ENCODERS", "encode"]

ENCODERS: dict[str, Callable[[torch.Tensor, EncoderConfig], EncodedMatrix]] = {
    "greedy": encode_greedy,
    "uniform": encode_uniform,
    "kmeans": encode_kmeans,
}


def encode(weight: torch.Tensor, config: EncoderConfig) -> EncodedMatrix:
    """Encode `weight` (out_features, in_features), of any float dtype, on its device; its record has the error.

    Arithmetic is in float32, or float64 for a float64 weight.

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
    weight = weight if weight.dtype == torch.float64 else weight.float()
    encoded = ENCODERS[config.encoder](weight, config)
    assert encoded.record is not None
    record = replace(encoded.record, relative_error=_relative_error(weight, encoded))
    return replace(encoded, layout=replace(encoded.layout, dtype=source), record=record)


def _relative_error(weight: torch.Tensor, encoded: EncodedMatrix) -> float:
    norm = float(torch.linalg.vector_norm(weight))
    residual = encoded.decode(weight.dtype).sub_(weight)
    return float(torch.linalg.vector_norm(residual)) / norm if norm else 0.0
