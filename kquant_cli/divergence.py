"""The Kullback-Leibler divergence between distributions that are given by their logits.

    KL(P || P') = sum_k p_k (log p_k - log p'_k) = log sum_k p_k e^{x_k} ,    x = z' - z - sum_k p_k (z'_k - z_k)

in nats, z and z' the logits of P and P'. The right-hand form keeps its digits where P' is so near P that the logarithms
cancel: as sum p x = 0, it is log1p(sum p (e^x - 1 - x)), a sum of positive terms, for which float32 is enough.
"""

from __future__ import annotations

import torch


def kl_divergence(logits: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """KL (rows,) between the softmaxes of the rows of two matrices of logits (rows, classes), P from the first."""
    probabilities = logits.softmax(-1)
    x = moved - logits
    x -= torch.linalg.vecdot(probabilities, x)[:, None]
    found = torch.linalg.vecdot(probabilities, x.expm1() - x).log1p()
    if torch.isfinite(found).all():
        return found
    first, second = logits.double().log_softmax(-1), moved.double().log_softmax(-1)  # e^x is too large
    return (first.exp() * (first - second)).sum(-1)
