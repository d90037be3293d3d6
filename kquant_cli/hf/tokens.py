"""Token ids to run a model on: random ones, or those of a text. Only reading a tokenizer imports transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def vocabulary(model: Any) -> int:
    """How many tokens the model has embeddings for."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def ordinary_ids(config: Any, size: int) -> Tensor:
    """The ids below `size` that a transformers config does not call special; all, if it calls all so.

    Special ones (padding, ends, images) mean more than a word.
    """
    special = [number for number in _special(config.to_dict()) if 0 <= number < size]
    ordinary = torch.ones(size, dtype=torch.bool)
    ordinary[special] = False
    return ordinary.nonzero().flatten() if ordinary.any() else torch.arange(size)


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """The ids under names such as `eos_token_id` or `image_token_index`, in parts of the config too."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special(value)
        elif "_token_i" in str(name):
            yield from (number for number in (value if isinstance(value, list) else [value]) if type(number) is int)


def random_ids(config: Any, size: int, count: int, draw: Callable[[int, int], Any]) -> Tensor:
    """Ids (count,) of the ordinary ones below `size`; `draw(n, count)` gives their places, (count,) from 0 to n - 1."""
    candidates = ordinary_ids(config, size)
    return candidates[torch.as_tensor(draw(len(candidates), count))]


def read_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a model folder, or of a model on the hub.

    Raises one of `FAILURES` (failures.py) where transformers cannot read it; ValueError where it knows special tokens
    alone, which is what some architectures give where there are no files.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 (seconds to import)

    tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError("it has no vocabulary")
    return tokenizer


def text_ids(tokenizer: Any, text: str, count: int, *, letters: int, special: bool) -> list[int]:
    """The first `count` ids of the text, or all that it has.

    `letters` of the text are tokenised at first for each id, so that not all of a long one is; `special`: with the
    special tokens that the tokenizer puts before a text.
    """
    read = letters * count
    ids = _encoded(tokenizer, text[:read], special)
    while len(ids) < count and read < len(text):
        read *= 4
        ids = _encoded(tokenizer, text[:read], special)
    return ids[:count]


def _encoded(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids
