"""The loss of each next-token prediction, without ever holding the logits of a whole batch where that can be avoided.

The logits of 2048 positions over 50,000 tokens are 400 MB in float32. Most architectures compute them as
head(backbone(tokens)), position by position; then a few hundred at a time do. Some do more to each logit:
cap * tanh(logit / cap) (Gemma 2), a factor (Cohere), a divisor (Granite). So head(backbone(tokens)), also with what
the config says of these, is tried once on a few tokens, and where all differ the model's own logits are used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch.nn import functional

from kquant_cli.hf.device_map import input_device
from kquant_cli.hf.tokens import vocabulary

POSITIONS: Final = 512  # of which logits are held in float32 at a time; small pieces cost threads their time
LOGIT_BYTES: Final = 256 * 2**20  # for the logits of a batch, where they are all held at once
BATCH_TOKENS: Final = {"cpu": 1024, "cuda": 16384}


Finish = Callable[[torch.Tensor], torch.Tensor]  # what a model does to the head's logits, each by itself


def unchanged(logits: torch.Tensor) -> torch.Tensor:
    """The logits as the head gives them."""
    return logits


@dataclass(frozen=True)
class TokenLosses:
    """How to compute one model's losses, and on how many windows at once."""

    model: transformers.PreTrainedModel
    in_pieces: bool  # the logits are finish(head(backbone(tokens)))
    finish: Finish = unchanged

    @classmethod
    def of(cls, model: transformers.PreTrainedModel) -> "TokenLosses":
        """Try on a few tokens whether finish(head(backbone(tokens))) gives the model's own logits, bit for bit."""
        head: Any = model.get_output_embeddings()
        backbone: Any = model.base_model
        if head is None or backbone is model:
            return cls(model, in_pieces=False)
        tokens = torch.arange(8, device=input_device(model)).remainder(vocabulary(model))[None]
        hidden = getattr(backbone(input_ids=tokens, use_cache=False), "last_hidden_state", None)
        if hidden is None:
            return cls(model, in_pieces=False)
        whole = model(input_ids=tokens, use_cache=False).logits
        own = head(hidden).to(whole.device)
        found = next((finish for finish in _finishes(model.config) if torch.equal(finish(own), whole)), None)
        return cls(model, in_pieces=False) if found is None else cls(model, in_pieces=True, finish=found)

    def batch_size(self, length: int) -> int:
        """How many windows of `length` tokens go through the model at once."""
        tokens = BATCH_TOKENS.get(input_device(self.model).type, BATCH_TOKENS["cpu"])
        if not self.in_pieces:
            tokens = min(tokens, LOGIT_BYTES // (4 * vocabulary(self.model)))
        return max(1, tokens // length)

    def logits(self, tokens: torch.Tensor, where: torch.Tensor, positions: int = POSITIONS) -> Iterator[torch.Tensor]:
        """The logits at the positions of `tokens` (batch, length) that the mask `where` of that shape names, in order.

        In pieces (at most `positions`, vocabulary), float32 (float64 for a float64 model).
        """
        model: Any = self.model
        tokens = tokens.to(input_device(model))
        if self.in_pieces:
            features = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        else:
            features = model(input_ids=tokens, use_cache=False).logits
        for piece in features[where.to(features.device)].split(positions):
            logits = self.finish(model.get_output_embeddings()(piece)) if self.in_pieces else piece
            yield logits.to(torch.promote_types(logits.dtype, torch.float32))

    def __call__(self, tokens: torch.Tensor, predictions: int) -> torch.Tensor:
        """The losses (batch, predictions) of the last `predictions` next-token predictions of `tokens` (batch, length).

        In nats, computed in float32 (float64 for a float64 model).
        """
        targets = tokens[:, -predictions:].flatten().split(POSITIONS)
        logits = self.logits(tokens, last(tokens, predictions))
        losses = [token_losses(piece, target) for piece, target in zip(logits, targets, strict=True)]
        return torch.cat(losses).view(len(tokens), predictions)


def _finishes(config: Any) -> Iterator[Finish]:
    """What a model with this config may do to its logits, in the order of transformers' own operations."""
    text_config = config.get_text_config()
    yield unchanged
    if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        yield lambda logits: torch.tanh(logits / cap) * cap
    if (factor := getattr(text_config, "logit_scale", None)) is not None:
        yield lambda logits: logits * factor
    if (divisor := getattr(text_config, "logits_scaling", None)) is not None:
        yield lambda logits: logits / divisor


def last(tokens: torch.Tensor, predictions: int) -> torch.Tensor:
    """The mask (batch, length) of the positions whose next-token predictions are the last `predictions` of a row."""
    where = torch.zeros(tokens.shape, dtype=torch.bool)
    where[:, -1 - predictions : -1] = True
    return where


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) in nats (n,), from logits (n, vocabulary) and the tokens that came (n,)."""
    return functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
