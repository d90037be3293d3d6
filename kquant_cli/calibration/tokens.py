"""What the model is run on: windows of seeded random tokens, or of a text file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from kquant_cli.calibration.unavailable import ERRORS
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.errors import KQuantError

RANDOM: Final = "random"
LONGEST_WINDOW: Final = 512
# The names that configs give to the longest input, most common first.
MAXIMUM_NAMES: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
LETTERS_A_TOKEN: Final = 16  # of a text, so many are tokenised at first for each token that is wanted


@dataclass(frozen=True)
class Source:
    """Where tokens come from: without `text` they are random; `description` names a text's file and its SHA-256."""

    name: str
    description: str
    text: str | None = None


def open_source(stats: str, word: str = RANDOM) -> Source:
    """Random tokens for "random", else the text file of that name; `word`: what a user calls random tokens here.

    Raises KQuantError when the file cannot be read, is not UTF-8, or is empty.
    """
    if stats == word:
        return Source(RANDOM, RANDOM)
    path = Path(stats)
    expected = f"expected a UTF-8 text file, or {word!r} for random tokens"
    try:
        path = path.expanduser()
        content = path.read_bytes()
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KQuantError(f"{path} is not UTF-8 text (byte {error.start}): {expected}; convert it to UTF-8") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such user; ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise KQuantError(f"{path} cannot be read ({reason}): {expected}; check the path") from error
    if not text.strip():
        raise KQuantError(f"{path} is empty: {expected}; give a file with some pages of text")
    return Source(str(path), f"{path.name} (SHA-256 {sha256(content).hexdigest()})", text)


def describe_source(stats: str, word: str = RANDOM) -> str:
    """What the numbers depend on: "random", or the name and the SHA-256 of the text; KQuantError as `open_source`."""
    return open_source(stats, word).description


def windows(source: Source, checkpoint: Checkpoint, model: Any, tokens: int, seed: int) -> Tensor:
    """Token ids (windows, length): about `tokens` in all, in equal windows that the model can take.

    Raises KQuantError when a text cannot be tokenised, or has no tokens.
    """
    limit = min(LONGEST_WINDOW, _longest(model))
    ids = _random(model, tokens, seed) if source.text is None else _tokenised(source, checkpoint, tokens)
    count = -(-len(ids) // limit)
    return ids[: len(ids) // count * count].view(count, -1)


def _longest(model: Any) -> int:
    """The longest input by the model's config, and by its tables of positions where those begin with padding."""
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in MAXIMUM_NAMES)
    found = [next((length for length in named if isinstance(length, int) and length > 0), LONGEST_WINDOW)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            found.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa's positions come after padding's
    return max(1, min(found))


def _random(model: Any, tokens: int, seed: int) -> Tensor:
    """Seeded uniformly random ids (tokens,), none of which the config calls special."""
    vocabulary = min(model.get_input_embeddings().weight.shape[0], model.config.get_text_config().vocab_size)
    allowed = ordinary_ids(model.config, vocabulary)
    return allowed[torch.from_numpy(np.random.RandomState(seed).randint(0, len(allowed), size=tokens))]


def ordinary_ids(config: Any, vocabulary: int) -> Tensor:
    """The ids below `vocabulary` that a transformers config does not call special; all, if it calls all so."""
    special = [number for number in _special(config.to_dict()) if 0 <= number < vocabulary]
    ordinary = torch.ones(vocabulary, dtype=torch.bool)
    ordinary[special] = False
    return ordinary.nonzero().flatten() if ordinary.any() else torch.arange(vocabulary)


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """The ids under names such as `eos_token_id` or `image_token_index`, in parts of the config too."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special(value)
        elif "_token_i" in str(name):
            yield from (number for number in (value if isinstance(value, list) else [value]) if type(number) is int)


def _tokenised(source: Source, checkpoint: Checkpoint, tokens: int) -> Tensor:
    """The first `tokens` ids of the text, or all that it has."""
    from transformers import AutoTokenizer  # noqa: PLC0415 (seconds to import)

    text = source.text or ""
    advice = f"put its tokenizer.json beside the weights, or use {RANDOM!r} tokens in place of {source.name}"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes of no files
            raise ValueError("it has no vocabulary")
        letters = LETTERS_A_TOKEN * tokens
        ids = tokenizer(text[:letters], add_special_tokens=False, verbose=False)["input_ids"]
        while len(ids) < tokens and letters < len(text):
            letters *= 4
            ids = tokenizer(text[:letters], add_special_tokens=False, verbose=False)["input_ids"]
    except ERRORS as error:
        raise KQuantError(f"{checkpoint.name} has no tokenizer that transformers can read: {advice}") from error
    if not ids:
        raise KQuantError(f"{source.name} holds no tokens for {checkpoint.name}: give a longer text")
    return torch.tensor(ids[:tokens], dtype=torch.int64)
