"""The tokens on which sensitivities are measured: random ones, or those of a text.

Uniformly random token ids do almost as well as text where only the loudness of channels is asked for (SCIENCE.md
section 4), and need no data. Models that give one distribution a sequence get many short sequences instead of few long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from kquant_cli.calibration.tokens import ordinary_ids
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.losses import vocabulary
from kquant_cli.evaluation.texts import text_file
from kquant_cli.evaluation.windows import maximum_window
from kquant_cli.runtime import LoadedModel

DATA_FREE: Final = "data-free"
SHORT: Final = 32  # tokens of a sequence where the model classifies sequences
SPARE: Final = 2  # positions that RoBERTa and its kin count in their maximum, but cannot use
CHARACTERS: Final = 64  # of a text, at most, to be tokenised for one token: no need to read all of a long one


def model_inputs(loaded: LoadedModel, source: str, tokens: int, seed: int, parts: int) -> list[dict[str, torch.Tensor]]:
    """The keyword arguments of `parts` forward passes, on `tokens` token ids together (parts * sequences * length).

    `source` is data-free or a text file; of a text too long the beginning is taken, part after part. Where `tokens` is
    no multiple of the length, which is at most what the model takes, a few tokens less are taken.

    Raises
    ------
    KQuantError
        The text cannot be read or is too short, or the checkpoint has no tokenizer.
    """
    length = _length(loaded.model, tokens // parts)
    count = parts * length * max(1, tokens // (parts * length))
    ids = _random_ids(loaded.model, count, seed) if source == DATA_FREE else _text_ids(loaded, Path(source), count)
    encodes = getattr(loaded.model.config, "is_encoder_decoder", False)
    names = ("input_ids", "decoder_input_ids") if encodes else ("input_ids",)
    return [dict.fromkeys(names, part) for part in ids.view(parts, -1, length).to(loaded.device)]


def _length(model: Any, tokens: int) -> int:
    """Of one sequence, where `tokens` are to be had."""
    classifies = "SequenceClassification" in type(model).__name__
    maximum = maximum_window(model.config)
    bounds = (tokens, SHORT if classifies else tokens, tokens if maximum is None else maximum - SPARE)
    return max(1, min(bounds))


def _random_ids(model: Any, count: int, seed: int) -> torch.Tensor:
    """Uniform among all ids but those that the config names (padding, ends, images): they mean more than a word."""
    candidates = ordinary_ids(model.config, vocabulary(model))
    return candidates[torch.randint(len(candidates), (count,), generator=torch.Generator().manual_seed(seed))]


def _text_ids(loaded: LoadedModel, file: Path, count: int) -> torch.Tensor:
    """The first `count` token ids of the text, with the special tokens that the tokenizer puts before a text."""
    text = text_file(file, "text").content
    ids = loaded.tokenizer(text[: CHARACTERS * count], verbose=False)["input_ids"]
    if len(ids) < count:
        raise KQuantError(
            f"{file} gives {len(ids)} tokens, expected {count} or more to measure sensitivities on: give a longer text"
        )
    highest, size = max(ids[:count]), vocabulary(loaded.model)
    if highest >= size:
        raise KQuantError(
            f"{loaded.path}: its tokenizer gives token {highest} for {file}, expected ids below the model's {size}: "
            f"put the model's own tokenizer beside the weights"
        )
    return torch.tensor(ids[:count])
