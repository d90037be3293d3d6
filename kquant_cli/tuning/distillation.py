"""The loss of tuning: the mean over tokens of KL(P || Q), P the teacher's distributions and Q the student's.

Its gradient with respect to the student's logits is (Q - P) / tokens, so nothing of the logits' size is kept for it
but that gradient, in the logits' own dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ENTRIES = 1 << 20  # logits worked on at a time, so that they stay in a cache


class _Divergence(torch.autograd.Function):
    """Sum of KL over tokens, of logits (tokens, vocabulary)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        gradient, total = torch.empty_like(student), torch.zeros((), device=student.device)
        step = max(1, ENTRIES // student.shape[1])
        for s, t, g in zip(student.split(step), teacher.split(step), gradient.split(step), strict=True):
            p, q = t.float().log_softmax(dim=-1), s.float().log_softmax(dim=-1)
            likely = p.exp()
            total += (likely * p.sub_(q)).sum()
            g.copy_(q.exp_().sub_(likely))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum of KL(teacher || student) in nats over tokens of logits (..., vocabulary); of gradients the student's."""
    width = student.shape[-1]
    total: Tensor = _Divergence.apply(student.reshape(-1, width), teacher.reshape(-1, width))
    return total
