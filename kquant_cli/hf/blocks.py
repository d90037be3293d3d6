"""The numbered blocks of a model, such as model.layers.7, and the model without them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kquant_cli.devices import multiplies_bfloat16
from kquant_cli.hf.block_names import block_of


def numbered_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks with their names, as the model has them; those inside others are none."""
    return [(name, module) for name, module in model.named_modules() if name and block_of(name) == name]


@contextmanager
def replaced(blocks: Sequence[nn.Module], hidden: Tensor, *, packed: bool = False) -> Iterator[None]:
    """Within it, every block gives `hidden`, as it would give its hidden states: what is left is the head.

    `packed`: the blocks give hidden states and something else, which is None here.
    """
    own = [(block, vars(block).get("forward")) for block in blocks]
    given = (hidden, None) if packed else hidden
    try:
        for block in blocks:
            block.forward = lambda *_args, **_kwargs: given
        yield
    finally:
        for block, forward in own:
            del block.forward
            if forward is not None:
                block.forward = forward


def without_logits(model: Any) -> dict[str, Any]:
    """The arguments with which a causal model keeps no cache, and computes as few logits as it can."""
    return {"use_cache": False, **({"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {})}


def last_logits(model: Any) -> Callable[..., Tensor]:
    """A call of the model that gives the logits (sequences, vocabulary) of the last token."""
    few = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}

    def call(**arguments: Any) -> Tensor:
        logits: Tensor = model(**arguments, **few).logits
        return logits[:, -1]

    return call


def autocast(device: torch.device) -> Any:
    """The context in which products are in bfloat16, where that is faster than float32."""
    if device.type == "cuda" or multiplies_bfloat16():
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _arguments(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
