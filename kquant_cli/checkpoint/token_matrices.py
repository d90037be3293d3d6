"""The matrices of tokens: a language model's input embedding and its output head, which `head_bits` is for.

They are told by the names under which transformers' models keep them, outside the numbered blocks. Tables of positions
and types have other names, and so have the heads of classifiers (score, classifier): all those stay dense. So do small
ones, and those of an encoder with a decoder (T5, BART), where one table may serve four places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.checkpoint.tied_weights import INPUTS, OUTPUTS, is_named

LEAST_WEIGHTS = 2**16  # a smaller one stays dense: there is nothing to be gained


def token_matrices(tensors: Mapping[str, TensorLike]) -> list[str]:
    """The names of the input embedding and the output head, of which a tied model stores one, among `tensors`."""
    return [
        name
        for name, tensor in tensors.items()
        if is_named(name, (*INPUTS, *OUTPUTS))
        and not any(part.isdecimal() for part in name.split("."))
        and len(tensor.shape) == 2
        and tensor.dtype.is_floating_point
    ]


def is_large(tensor: TensorLike) -> bool:
    """Whether the matrix has enough weights to be worth encoding."""
    return tensor.numel >= LEAST_WEIGHTS


def has_decoder_beside_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the model is of T5's kind."""
    return config.get("is_encoder_decoder") is True
