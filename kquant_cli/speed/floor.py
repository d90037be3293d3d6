"""What the memory allows: a decoded token reads every weight, so bytes over bandwidth are the least time it takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from kquant_cli.runtime.embedding import KashinEmbedding

BUFFER = 2**28  # bytes read: far more than any cache holds
READINGS = 5


def bytes_per_token(model: Any) -> int:
    """Bytes of the parameters that a decoded token reads: all but tables of embeddings that are only looked up."""
    head = model.get_output_embeddings()
    read = {id(p): p for p in head.parameters()} if head is not None else {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding | KashinEmbedding):
            read |= {id(p): p for p in module.parameters(recurse=False)}
    return sum(parameter.numel() * parameter.element_size() for parameter in read.values())


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that a plain sum over a large buffer reads, the best of a few: what one can hope for here."""
    buffer = torch.ones(BUFFER // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(READINGS):
        started = time.perf_counter()
        buffer.sum()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return BUFFER / best
