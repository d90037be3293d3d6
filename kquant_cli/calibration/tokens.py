"""What a model is run on: seeded random tokens, or those of a text.

Uniformly random token ids do almost as well as text where only the loudness of channels is asked for (docs/method.md),
and need no data. Statistics take windows as long as the model can, of a text without special tokens; for
sensitivities a sequence begins as the tokenizer begins a text, and models that give one distribution a sequence get
many short ones instead of few long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from kquant_cli.calibration.text_source import DATA_FREE, RANDOM, Source, open_source
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.errors import KQuantError
from kquant_cli.hf.limits import longest_input, maximum_length
from kquant_cli.hf.tokens import random_ids, read_tokenizer, text_ids, vocabulary

if TYPE_CHECKING:
    from kquant_cli.hf.loading import LoadedModel

LONGEST_WINDOW: Final = 512
SHORT: Final = 32  # tokens of a sequence where the model classifies sequences
SPARE: Final = 2  # positions that RoBERTa and its kin count in their maximum, but cannot use


def windows(source: Source, checkpoint: Checkpoint, model: Any, tokens: int, seed: int) -> Tensor:
    """Token ids (windows, length) for statistics: about `tokens` in all, in equal windows that the model can take.

    Raises KQuantError when a text cannot be tokenised, or has no tokens.
    """
    longest = longest_input(model)
    limit = max(1, LONGEST_WINDOW if longest is None else min(LONGEST_WINDOW, longest))
    if source.text is None:
        generator = np.random.RandomState(seed)
        size = min(vocabulary(model), model.config.get_text_config().vocab_size)
        ids = random_ids(model.config, size, tokens, lambda n, count: generator.randint(0, n, size=count))
    else:
        ids = _tokenised(source, checkpoint, tokens)
    count = -(-len(ids) // limit)
    return ids[: len(ids) // count * count].view(count, -1)


def model_inputs(loaded: LoadedModel, source: str, tokens: int, seed: int, parts: int) -> list[dict[str, Tensor]]:
    """The keyword arguments of `parts` forward passes for sensitivities, on `tokens` token ids together.

    Those of a pass are (sequences, length). `source` is data-free or a text file; of a text too long the beginning is
    taken, part after part. Where `tokens` is no multiple of the length, which is at most what the model takes, a few
    tokens less are taken.

    Raises
    ------
    KQuantError
        The text cannot be read or is too short, or the checkpoint has no tokenizer.
    """
    length = _sequence_length(loaded.model, tokens // parts)
    count, text = parts * length * max(1, tokens // (parts * length)), open_source(source, DATA_FREE)
    if text.text is None:
        generator = torch.Generator().manual_seed(seed)
        config, size = loaded.model.config, vocabulary(loaded.model)
        ids = random_ids(config, size, count, lambda n, count: torch.randint(n, (count,), generator=generator))
    else:
        ids = _known_ids(loaded, text, count)
    encodes = getattr(loaded.model.config, "is_encoder_decoder", False)
    names = ("input_ids", "decoder_input_ids") if encodes else ("input_ids",)
    return [dict.fromkeys(names, part) for part in ids.view(parts, -1, length).to(loaded.device)]


def _sequence_length(model: Any, tokens: int) -> int:
    """Of one sequence, where `tokens` are to be had."""
    classifies = "SequenceClassification" in type(model).__name__
    maximum = maximum_length(model.config)
    bounds = (tokens, SHORT if classifies else tokens, tokens if maximum is None else maximum - SPARE)
    return max(1, min(bounds))


def _tokenised(source: Source, checkpoint: Checkpoint, tokens: int) -> Tensor:
    """The first `tokens` ids of the text, or all that it has."""
    try:
        tokenizer = read_tokenizer(checkpoint.path)
    except KQuantError as error:
        raise KQuantError(f"{error}, or use {RANDOM!r} tokens in place of {source.name}") from error
    ids = text_ids(tokenizer, source.text or "", tokens, letters=16, special=False)
    if not ids:
        raise KQuantError(f"{source.name} holds no tokens for {checkpoint.name}: give a longer text")
    return torch.tensor(ids, dtype=torch.int64)


def _known_ids(loaded: LoadedModel, source: Source, count: int) -> Tensor:
    """The first `count` token ids of the text, all of which the model has embeddings for."""
    ids = text_ids(loaded.tokenizer, source.text or "", count, letters=64, special=True)
    if len(ids) < count:
        raise KQuantError(
            f"{source.name} gives {len(ids)} tokens, expected {count} or more to measure sensitivities on: "
            f"give a longer text"
        )
    highest, size = max(ids), vocabulary(loaded.model)
    if highest >= size:
        raise KQuantError(
            f"{loaded.path}: its tokenizer gives token {highest} for {source.name}, expected ids below the model's "
            f"{size}: put the model's own tokenizer beside the weights"
        )
    return torch.tensor(ids)
