"""A weight becomes an encoded matrix, and what that takes is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from kquant_cli.bases import BASES, basis_for
from kquant_cli.encoded import SIDES, EncodedMatrix
from kquant_cli.encoders.encoder import Encoder, EncoderSettings
from kquant_cli.encoders.metric import Metric
from kquant_cli.threads import alone

SMALL = 2**15  # entries of a matrix that no threads are worth


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


def rounds_by_threads(shape: tuple[int, int], choice: Choice) -> bool:
    """Whether a basis of the frame multiplies as a whole matrix, which each number of threads rounds otherwise."""
    frame = choice.chosen.layout(shape, choice.level_count, choice.settings).frame
    return any(BASES[spec.kind].by_threads for side in SIDES if (spec := getattr(frame, side)) is not None)


def encoded_bytes(shape: tuple[int, int], choice: Choice, *, in_metric: bool = False) -> int:
    """Bytes that a matrix (out_features, in_features) takes when it is encoded so, but for a channel scale.

    `in_metric`: encoded in a metric, which the encoder must take.
    """
    arguments = (shape, choice.level_count, choice.settings)
    layout = choice.chosen.layout_in_metric(*arguments) if in_metric else choice.chosen.layout(*arguments)
    assert layout is not None
    scale = choice.chosen.scale_dtype
    dtypes = {"weight_codes": torch.uint8, "weight_codebook": torch.float32}  # a constant codebook is not stored
    return sum(math.prod(size) * dtypes.get(name, scale).itemsize for name, size in layout.tensor_shapes().items())


def takes_metric(choice: Choice) -> bool:
    """Whether the encoder, so set, can encode in a metric."""
    return choice.chosen.layout_in_metric((2, 2), 2, choice.settings) is not None


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
    if weight.numel() <= SMALL:
        return alone(_encode, weight, choice, channel_scale, device=weight.device)
    return _encode(weight, choice, channel_scale)


def _encode(weight: torch.Tensor, choice: Choice, channel_scale: torch.Tensor | None) -> EncodedMatrix:
    compute = _checked(weight)
    if channel_scale is None:
        return _with_errors(weight, compute, choice.chosen.encode(compute, choice.level_count, choice.settings))
    channel_scale = channel_scale.to(weight.device)
    encoded = choice.chosen.encode(compute * channel_scale.to(compute.dtype), choice.level_count, choice.settings)
    layout = replace(encoded.layout, channel_scale=True)
    return _with_errors(weight, compute, replace(encoded, layout=layout, channel_scale=channel_scale))


def encode_in_metric(weights: Sequence[torch.Tensor], metrics: Sequence[Metric], choice: Choice) -> list[EncodedMatrix]:
    """Encode `weights`, of one shape, as `encode` does one, but each in its metric; records have that loss, too."""
    computed = [_checked(weight) for weight in weights]
    encoded = choice.chosen.encode_in_metric(computed, metrics, choice.level_count, choice.settings)
    return [_with_errors(*one) for one in zip(weights, computed, encoded, metrics, strict=True)]


def unit_losses(weights: Sequence[torch.Tensor], metrics: Sequence[Metric], choice: Choice) -> list[float]:
    """The loss in its metric of each of `weights`, of one shape, by relative squared error that the encoding leaves."""
    return choice.chosen.unit_losses([_checked(weight) for weight in weights], metrics, choice.settings)


def relative_error(weight: torch.Tensor, encoded: EncodedMatrix) -> float:
    """|weight - decoded|_F / |weight|_F; 0 for a zero matrix."""
    computed = _checked(weight)
    norm = _norm(computed)
    return _norm(encoded.decode(computed.dtype).to(computed.device).sub_(computed)) / norm if norm else 0.0


def _checked(weight: torch.Tensor) -> torch.Tensor:
    """The weight in the dtype of the arithmetic."""
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"expected a matrix with entries, found shape {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise ValueError("the weight has entries that are not finite")
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _with_errors(
    weight: torch.Tensor, computed: torch.Tensor, encoded: EncodedMatrix, metric: Metric | None = None
) -> EncodedMatrix:
    """The matrix with its errors and the source's dtype."""
    assert encoded.record is not None
    error, norm = encoded.decode(computed.dtype).sub_(computed), _norm(computed)
    relative = _norm(error) / norm if norm else 0.0
    loss = None if metric is None else metric.loss(error.float(), computed.float())
    layout = replace(encoded.layout, dtype=str(weight.dtype).removeprefix("torch."))
    return replace(encoded, layout=layout, record=replace(encoded.record, relative_error=relative, metric_loss=loss))


def _norm(matrix: torch.Tensor) -> float:
    """|matrix|_F, in units of its largest entry, so that no square over- or underflows."""
    largest = float(matrix.abs().max())
    return largest * float(torch.linalg.vector_norm(matrix / largest)) if largest else 0.0
