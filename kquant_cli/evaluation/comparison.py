"""How far one language model's predictions are from another's, token by token.

    KL(original || model) = sum_t p(t) (log p(t) - log q(t)),      p of the original, q of the model, t the next token

in float64. Agreement is that of the most likely token. Both models read the same tokens at the same time, for nobody
keeps one's logits until the other's come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from kquant_cli.divergence import kl_divergence
from kquant_cli.evaluation.losses import TokenLosses, token_losses

POSITIONS: Final = 64  # of which several float64 tables are held at a time


@dataclass(frozen=True)
class Compared:
    """What two models say of the same tokens, all (n,) on the CPU in float64; `greedy`: the target was most likely."""

    losses: torch.Tensor
    original_losses: torch.Tensor
    greedy: torch.Tensor
    original_greedy: torch.Tensor
    divergences: torch.Tensor
    agreements: torch.Tensor


def compare(
    model: TokenLosses, original: TokenLosses, tokens: torch.Tensor, where: torch.Tensor, targets: torch.Tensor
) -> Compared:
    """Compare the n predictions after the positions of `tokens` (batch, length) that the mask `where` names, in order.

    `targets` (n,) are the tokens that came next.
    """
    pieces = zip(
        model.logits(tokens, where, POSITIONS),
        original.logits(tokens, where, POSITIONS),
        targets.split(POSITIONS),
        strict=True,
    )
    found = [
        torch.stack(list(_piece(logits, reference.to(logits.device), target.to(logits.device)))).cpu()
        for logits, reference, target in pieces
    ]
    return Compared(*torch.cat(found, dim=1))


def _piece(logits: torch.Tensor, reference: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
    """The six rows of `Compared` for logits and the original's (n, vocabulary)."""
    yield token_losses(logits, targets).double()
    yield token_losses(reference, targets).double()
    first, reference_first = logits.argmax(dim=1), reference.argmax(dim=1)
    yield (first == targets).double()
    yield (reference_first == targets).double()
    yield kl_divergence(reference.double(), logits.double())
    yield (first == reference_first).double()
