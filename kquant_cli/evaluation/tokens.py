"""What a comparison of two language models asks of their tokenizers: the same tokens."""

from kquant_cli.errors import KQuantError
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.tokens import vocabulary


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
