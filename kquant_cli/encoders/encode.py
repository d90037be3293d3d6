"""A weight becomes an encoded matrix, and what that takes is known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import torch

from kquant_cli.bases import basis_for
from kquant_cli.encoded import SIDES, EncodedMatrix
from kquant_cli.encoders.encoder import Encoder, EncoderSettings


class Choice(Protocol):
    """What is chosen for a matrix: `EncoderConfig` is such a choice."""

    @property
    def chosen(self) -> Encoder[Any]:
        """The encoder."""

    @property
    def settings(self) -> EncoderSettings:
        """Its settings."""

    @property
    def level_count(self) -> int:
        """Centroids of the codebook."""


def check_bases(shape: tuple[int, int], choice: Choice) -> None:
    """Raise KQuantError when a basis of the frame cannot have a size of the matrix (out_features, in_features)."""
    frame = choice.chosen.layout(shape, choice.level_count, choice.settings).frame
    for side in SIDES:
        if (spec := getattr(frame, side)) is not None:
            basis_for(spec)


def encoded_bytes(shape: tuple[int, int], choice: Choice) -> int:
    """Bytes that a matrix (out_features, in_features) takes when it is encoded so, but for a channel scale."""
    layout = choice.chosen.layout(shape, choice.level_count, choice.settings)
    scale = choice.chosen.scale_dtype
    dtypes = {"weight_codes": torch.uint8, "weight_codebook": torch.float32}  # a constant codebook is not stored
    return sum(math.prod(size) * dtypes.get(name, scale).itemsize for name, size in layout.tensor_shapes().items())


def encode(weight: torch.Tensor, choice: Choice, channel_scale: torch.Tensor | None = None) -> EncodedMatrix:
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
        encoded = choice.chosen.encode(weight, choice.level_count, choice.settings)
    else:
        channel_scale = channel_scale.to(weight.device)
        scaled = weight * channel_scale.to(weight.dtype)
        encoded = choice.chosen.encode(scaled, choice.level_count, choice.settings)
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
