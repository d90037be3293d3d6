"""What every language task asks of a tokenizer: tokens that the model knows."""

import torch

from kquant_cli.errors import KQuantError
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.tokens import vocabulary


def require_known(loaded: LoadedModel, tokens: torch.Tensor) -> None:
    """Raise KQuantError where a token of `tokens` (length,) is beyond the model's vocabulary."""
    known = vocabulary(loaded.model)
    if len(tokens) and int(tokens.max()) >= known:
        raise KQuantError(
            f"the tokenizer of {loaded.path} gives token {int(tokens.max())}, but the model's vocabulary has "
            f"{known} tokens: the tokenizer belongs to another model"
        )


def require_comparable(loaded: LoadedModel, against: LoadedModel) -> None:
    """Raise KQuantError where the two models' predictions are over different vocabularies."""
    ours, theirs = vocabulary(loaded.model), vocabulary(against.model)
    if ours != theirs:
        raise KQuantError(
            f"--against {against.path} has a vocabulary of {theirs} tokens and {loaded.path} one of {ours}: "
            "name the original that it was compressed from"
        )


def require_same_tokens(loaded: LoadedModel, against: LoadedModel, same: bool) -> None:
    """Raise KQuantError where the two tokenizers did not give the same tokens."""
    if not same:
        raise KQuantError(
            f"the tokenizers of {loaded.path} and --against {against.path} cut the text into different tokens: "
            "name the original that it was compressed from"
        )
