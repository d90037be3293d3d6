"""Which linear layer of a model each encoded matrix is the weight of, found before anything is loaded.

The names are mapped as transformers maps them (hf/parameter_names.py): that of `M.weight` first, and then that of every
tensor that replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from kquant_cli.encoded import Layout
from kquant_cli.errors import KQuantError
from kquant_cli.hf.parameter_names import parameter_lookup

WEIGHT = ".weight"


class CannotRunFromCodesError(KQuantError):
    """The model has a parameter for the matrix, but not one that a layer of ours can take: `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; decode it with `kquant decompress`")
        self.reason = reason


@dataclass(frozen=True)
class EncodedModule:
    """The module names of an encoded matrix: on disk, and in the model."""

    on_disk: str
    module: str


def find_modules(model: Any, names: Iterable[str]) -> list[EncodedModule]:
    """The module of every encoded matrix of `names` (module names on disk) that `model` (on meta) has one for.

    Raises
    ------
    CannotRunFromCodesError
        transformers fuses the matrix with others.
    """
    find = parameter_lookup(model)
    modules = []
    for name in names:
        parameter = find(name + WEIGHT)
        if parameter is None:
            continue
        if not parameter.whole:
            raise CannotRunFromCodesError(
                f"the encoded matrix {name!r} is one part of {parameter.name!r}, which transformers fuses from "
                f"several: {type(model).__name__} cannot run from codes"
            )
        modules.append(EncodedModule(name, parameter.name.removesuffix(WEIGHT)))
    return modules


def require_linear(model: nn.Module, found: EncodedModule, layout: Layout) -> nn.Module:
    """The module `found.module`, a linear layer of the layout's shape; CannotRunFromCodesError where it is none."""
    module = model.get_submodule(found.module)
    if not isinstance(module, nn.Linear | Conv1D):
        raise CannotRunFromCodesError(
            f"the encoded matrix {found.on_disk!r} is the weight of a module {type(module).__name__}, and only linear "
            f"layers run from codes"
        )
    weight = module.weight
    shape = tuple(weight.shape[::-1]) if isinstance(module, Conv1D) else tuple(weight.shape)
    if shape != layout.shape or isinstance(module, Conv1D) != layout.transposed:
        raise KQuantError(
            f"the encoded matrix {found.on_disk!r} has the shape {list(layout.shape)}, where the model of config.json "
            f"has a {type(module).__name__} of {list(shape)}; the bundle is damaged, make it again"
        )
    return module


def require_same_modules(model: Any, modules: Iterable[EncodedModule], layouts: Mapping[str, Layout]) -> None:
    """CannotRunFromCodesError where transformers would take a matrix's tensors elsewhere than its weight."""
    find = parameter_lookup(model)
    for entry in modules:
        for suffix in layouts[entry.on_disk].tensor_shapes():
            parameter = find(f"{entry.on_disk}.{suffix}")
            if parameter is None or parameter.name != f"{entry.module}.{suffix}":
                raise CannotRunFromCodesError(
                    f"transformers takes the weight of {entry.on_disk!r} to {entry.module!r}, but not its {suffix}: "
                    f"{type(model).__name__} cannot run from codes"
                )
