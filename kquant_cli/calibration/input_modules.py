"""Which modules of a transformers model multiply their input with which matrices on disk.

transformers itself says which parameter a tensor on disk becomes (hf/parameter_names.py), so no table of names is
needed; a tied parameter is that of several modules. That a matrix multiplies its module's input is certain where it is
the whole weight of a Linear, or of GPT-2's Conv1D. One that is part of a parameter (a fused expert), or lies in a
module of another kind, must not be square, and the module's input must have its in_features: so it is for experts'
first projections, not for their last, whose inputs stay inside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from kquant_cli.calibration.unavailable import LOOKED_UP, SQUARE, UNUSED, WRONG_SIDE
from kquant_cli.checkpoint import Matrix
from kquant_cli.hf.parameter_names import parameter_lookup


@dataclass(frozen=True)
class InputModules:
    """The modules whose input is that of a matrix; `reason`, if there are none, ends a sentence."""

    modules: tuple[nn.Module, ...]
    reason: str = ""


_Holder = tuple[nn.Module, bool]  # a module with a parameter made from a tensor, and whether it is the whole of it


def find_input_modules(model: Any, matrices: Iterable[Matrix], tied: Mapping[str, str]) -> dict[str, InputModules]:
    """For each matrix, by its name, the modules of `model` that multiply with it.

    `tied`: further names of tensors on disk, and the name under which each is kept.
    """
    find, parameters = parameter_lookup(model), dict(model.named_parameters(remove_duplicate=False))
    sharing: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            sharing.setdefault(id(parameter), []).append(module)

    def holders(matrix: Matrix) -> list[_Holder]:
        names = (matrix.tensor, *(other for other, kept in tied.items() if kept == matrix.tensor))
        loaded = {found.name: found.whole for name in names if (found := find(name)) is not None}
        shared = {id(parameters[name]): whole for name, whole in loaded.items() if name in parameters}
        return [(module, whole) for parameter, whole in shared.items() for module in sharing[parameter]]

    return {matrix.name: _judged(matrix, holders(matrix)) for matrix in matrices}


def is_linear(module: nn.Module) -> bool:
    """Whether the module's output is its input times its weight, and a bias."""
    return isinstance(module, (nn.Linear, Conv1D))


def outside(part: nn.Module, found: Iterable[InputModules]) -> bool:
    """Whether any module of what was found is none of `part`."""
    within = set(part.modules())
    return any(module not in within for entry in found for module in entry.modules)


def _judged(matrix: Matrix, holders: Collection[_Holder]) -> InputModules:
    if not holders:
        return InputModules((), UNUSED)
    multiplying = [(module, whole) for module, whole in holders if not isinstance(module, nn.Embedding)]
    if not multiplying:
        return InputModules((), LOOKED_UP)
    doubts = [reason for module, whole in multiplying if (reason := _doubt(matrix, module, whole))]
    return InputModules((), doubts[0]) if doubts else InputModules(tuple(module for module, _ in multiplying))


def _doubt(matrix: Matrix, module: nn.Module, whole: bool) -> str:
    """Why the module's input may not be the matrix's; empty if it is, provided that it has its in_features."""
    if whole and is_linear(module):
        return WRONG_SIDE if matrix.transposed != isinstance(module, Conv1D) else ""
    return SQUARE if matrix.shape[0] == matrix.shape[1] else ""
