"""Which modules of a transformers model multiply their input with which matrices on disk.

A module's parameter knows the tensors on disk that it is made of (lazy_tensor.py): no table of names is needed. That a
matrix multiplies its module's input is certain where it is the whole weight of a Linear, or of GPT-2's Conv1D. One that
is part of a parameter (a fused expert), or lies in a module of another kind, must not be square, and the module's input
must have its in_features: so it is for experts' first projections, not for their last, whose inputs stay inside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from kquant_cli.calibration.lazy_tensor import StoredTensor
from kquant_cli.calibration.unavailable import LOOKED_UP, NOT_PLACED, SQUARE, WRONG_SIDE
from kquant_cli.checkpoint import Matrix


@dataclass(frozen=True)
class Placed:
    """The modules whose input is that of a matrix; `reason`, if there are none, ends a sentence."""

    modules: tuple[nn.Module, ...]
    reason: str = ""


def place(model: nn.Module, matrices: Iterable[Matrix]) -> dict[str, Placed]:
    """For each matrix, by its name, the modules of `model` that hold it."""
    holders: dict[str, list[tuple[nn.Module, StoredTensor]]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if isinstance(parameter, StoredTensor):
                for source in parameter.sources:
                    holders.setdefault(source, []).append((module, parameter))
    return {matrix.name: _placed(matrix, holders.get(matrix.tensor, ())) for matrix in matrices}


def outside(part: nn.Module, placed: Iterable[Placed]) -> bool:
    """Whether any of what is placed lies in no module of `part`."""
    within = set(part.modules())
    return any(module not in within for found in placed for module in found.modules)


def _placed(matrix: Matrix, holders: Collection[tuple[nn.Module, StoredTensor]]) -> Placed:
    if not holders:
        return Placed((), NOT_PLACED)
    multiplying = [(module, parameter) for module, parameter in holders if not isinstance(module, nn.Embedding)]
    if not multiplying:
        return Placed((), LOOKED_UP)
    reasons = [_doubt(matrix, module, parameter) for module, parameter in multiplying]
    doubts = [reason for reason in reasons if reason]
    return Placed((), doubts[0]) if doubts else Placed(tuple(module for module, _ in multiplying))


def _doubt(matrix: Matrix, module: nn.Module, parameter: StoredTensor) -> str:
    """Why the module's input may not be the matrix's; empty if it is, provided that it has its in_features."""
    if parameter.is_copy and isinstance(module, (nn.Linear, Conv1D)):
        return WRONG_SIDE if matrix.transposed != isinstance(module, Conv1D) else ""
    return SQUARE if matrix.shape[0] == matrix.shape[1] else ""
