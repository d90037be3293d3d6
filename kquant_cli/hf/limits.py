"""How many tokens a model takes at once."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

# The names that configs give to the longest input, most common first.
MAXIMUM_NAMES: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


def maximum_length(config: Any) -> int | None:
    """The longest input that a model's config allows, or None where it sets no bound."""
    text_config = config.get_text_config()
    found = (getattr(text_config, name, None) for name in MAXIMUM_NAMES)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def longest_input(model: Any) -> int | None:
    """The longest input of `model`, or None where nothing sets a bound.

    By its config, and by its tables of positions where those begin with padding: RoBERTa and its kin count the rows up
    to there in their maximum, but positions come after them.
    """
    bounds = [maximum_length(model.config)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            bounds.append(module.num_embeddings - module.padding_idx - 1)
    return min((bound for bound in bounds if bound is not None), default=None)
