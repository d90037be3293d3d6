"""Whether a model predicts each token from those before it alone: measured, since no config says so for certain.

A model that sees the next token predicts it almost surely, and its perplexity says nothing. So a few tokens are read
twice, with other ones in the second half: the logits of the first half must stay. They need not stay to the last bit
(mixtures of experts multiply in another order), nor need a model that draws numbers give the same twice; what counts is
how far they move beside those of the second half, and beside what the same tokens read again give.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from kquant_cli.errors import KQuantError
from kquant_cli.hf.device_map import input_device
from kquant_cli.hf.limits import longest_input
from kquant_cli.hf.tokens import ordinary_ids, vocabulary

TOKENS: Final = 16
LEAST: Final = 3e-4  # of what the second half moves; the first half of a model that sees it moves 0.002 to 1 of that
NOISE: Final = 4  # times the rounding of the dtype, of the largest logit


def require_causal(path: str, model: Any) -> None:
    """KQuantError where the logits of `model`, which was loaded from `path`, depend on later tokens."""
    if sees_later_tokens(model):
        architectures = getattr(model.config, "architectures", None) or [type(model).__name__]
        raise KQuantError(
            f"{path} ({', '.join(map(str, architectures))}) is no causal language model, which this needs: what it "
            "predicts of a token changes with the tokens after it"
        )


@torch.inference_mode()
def sees_later_tokens(model: Any) -> bool:
    """Whether the logits of early tokens change with later ones, on a few tokens."""
    bound = longest_input(model)
    count = TOKENS if bound is None else min(TOKENS, bound)
    half = count // 2
    if half == 0:
        return False
    known = ordinary_ids(model.config, vocabulary(model))
    draw = torch.Generator().manual_seed(0)
    ids = known[torch.randint(len(known), (2, count), generator=draw)]
    ids[1, :half] = ids[0, :half]
    same, other = _logits(model, ids[:1]), _logits(model, ids[1:])
    early, late = _distance(same, other, slice(None, half)), _distance(same, other, slice(half, None))
    scale = float(same[torch.isfinite(same)].abs().max()) if torch.isfinite(same).any() else 0.0
    least = max(LEAST * late, NOISE * torch.finfo(model.dtype).eps * scale)
    if early <= least:
        return False
    return early > 3 * _distance(same, _logits(model, ids[:1]), slice(None, half))


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of one sequence ids (1, count): (count, vocabulary), in float64 on the CPU."""
    logits: torch.Tensor = model(input_ids=ids.to(input_device(model)), use_cache=False).logits
    return logits[0].double().cpu()


def _distance(one: torch.Tensor, other: torch.Tensor, where: slice) -> float:
    """The largest difference of finite logits among those positions; 0 where there are none."""
    difference = (one[where] - other[where]).abs()
    finite = difference[torch.isfinite(difference)]
    return float(finite.max()) if len(finite) else 0.0
