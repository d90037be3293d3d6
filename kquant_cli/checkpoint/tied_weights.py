"""Tied weights: one tensor under two names is stored, encoded and counted once.

Which name stays: the input embedding's, since transformers makes the output layer from it, and so do other readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import torch

from kquant_cli.checkpoint.pytorch_bin import PickledTensor, read_pickled
from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_chunks

INPUTS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "shared.weight")
OUTPUTS = ("lm_head.weight", "embed_out.weight", "lm_head.decoder.weight", "predictions.decoder.weight")
OUTPUT_BIASES = ("lm_head.bias", "lm_head.decoder.bias", "predictions.bias", "predictions.decoder.bias")


def tied_by_storage(groups: Iterable[list[str]], config: Mapping[str, Any]) -> dict[str, str]:
    """Dropped name -> kept name for names that share their memory in a .bin file, and that transformers ties itself.

    Those are the tables of a model's tokens, and the bias of its output layer; the first name that is not the output
    layer's is kept. Anything else that shares memory (blocks that a model has twice) is kept under every name, since
    transformers would look for it, and so is all where the config says that embeddings are not tied.
    """
    if config.get("tie_word_embeddings") is False:
        return {}
    tied: dict[str, str] = {}
    for group in groups:
        names = [name for name in group if not any(part.isdecimal() for part in name.split("."))]
        tables = any(is_named(name, (*INPUTS, *OUTPUTS)) for name in names)
        if tables or all(is_named(name, OUTPUT_BIASES) for name in names):
            kept = next((name for name in names if not is_named(name, OUTPUTS)), names[0] if names else "")
            tied |= {name: kept for name in names if name != kept}
    return tied


def tied_by_value(tensors: Mapping[str, TensorLike], config: Mapping[str, Any]) -> dict[str, str]:
    """Dropped name -> kept name for output layers that the config ties to an input embedding, where both are equal."""
    if config.get("tie_word_embeddings") is not True:
        return {}
    inputs = [name for name in tensors if is_named(name, INPUTS)]
    outputs = [name for name in tensors if is_named(name, OUTPUTS)]
    tied: dict[str, str] = {}
    for output, kept in product(outputs, inputs):
        if output not in tied and _same(tensors[output], tensors[kept]):
            tied[output] = kept
    return tied


def is_named(name: str, endings: tuple[str, ...]) -> bool:
    """Whether the tensor's name is one of `endings`, or ends with a dot and one."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _same(first: TensorLike, second: TensorLike) -> bool:
    """Whether two stored tensors are equal in type, shape and every bit."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return all(a == b for a, b in zip(_chunks(first), _chunks(second), strict=True))


def _chunks(tensor: TensorLike) -> Iterator[bytearray | memoryview]:
    if isinstance(tensor, TensorInfo):
        yield from read_chunks(tensor)
    elif isinstance(tensor, PickledTensor):
        yield read_pickled(tensor).reshape(-1).view(torch.uint8).numpy().data
