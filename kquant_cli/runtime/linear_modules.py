"""Which linear layer or embedding of a model each encoded matrix is the weight of, found before anything is loaded.

The names are mapped as transformers maps them (hf/parameter_names.py): that of `M.weight` first, and then that of every
tensor that replaces it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from kquant_cli.encoded import Layout
from kquant_cli.errors import KQuantError
from kquant_cli.hf.block_names import block_of
from kquant_cli.hf.parameter_names import parameter_lookup
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError
from kquant_cli.runtime.embedding import refusal

WEIGHT = ".weight"
CODES = "weight_codes"


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


def named_as_stored(model: Any, layouts: Mapping[str, Layout], stored: Collection[str]) -> dict[str, Layout]:
    """The layouts by the names of their modules on disk.

    `save_pretrained` writes config.json with the names that modules have in the model, and gives the tensors of some
    (the head of GPT-NeoX) the names that they had.
    """
    missing = [name for name in layouts if f"{name}.{CODES}" not in stored]
    others = [name.removesuffix(f".{CODES}") for name in stored if name.endswith(f".{CODES}")]
    others = [name for name in others if name not in layouts]
    if not missing or not others:
        return dict(layouts)
    find = parameter_lookup(model)
    by_parameter = {found.name: name for name in others if (found := find(name + WEIGHT)) is not None}
    names = {name: by_parameter.get(f"{name}{WEIGHT}", name) for name in missing}
    renamed = {names.get(name, name): layout for name, layout in layouts.items()}
    return {
        name: replace(layout, channel_scale_from=names.get(owner, owner))
        if (owner := layout.channel_scale_from)
        else layout
        for name, layout in renamed.items()
    }


def stored_parameters(model: Any, names: Iterable[str]) -> set[str]:
    """The parameters of `model` that tensors on disk of these names become, or become a part of."""
    find = parameter_lookup(model)
    return {found.name for name in names if (found := find(name)) is not None}


def require_blocks(model: Any, unmatched: Collection[str], stored: Collection[str]) -> None:
    """KQuantError where encoded matrices of blocks have no module in `model`, and blocks of it have no weight on disk.

    A matrix without a module is no fault by itself: a model may have no part for it (a head, a vision tower's blocks).
    `unmatched`: names on disk; `stored`: the model's parameters that something on disk becomes.
    """
    lost = [name for name in unmatched if block_of(name)]
    if not lost:
        return
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names = (name for name, _ in model.named_parameters() if block_of(name) and name not in tied)
    empty = [name for name in names if name not in stored]
    if empty:
        raise KQuantError(
            f"{type(model).__name__} has no module for the encoded matrix {min(lost)!r}, and the bundle has no tensor "
            f"for its {min(empty)!r}: load it as the architecture that its config.json names, or make the bundle again"
        )


def require_place(model: nn.Module, found: EncodedModule, layout: Layout) -> nn.Module:
    """The module `found.module`, a linear layer or an embedding of the layout's shape.

    Raises CannotRunFromCodesError where it is neither, or looks its rows up in a way of its own.
    """
    module = model.get_submodule(found.module)
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        raise CannotRunFromCodesError(
            f"the encoded matrix {found.on_disk!r} is the weight of a module {type(module).__name__}, and only linear "
            f"layers and embeddings run from codes"
        )
    weight = module.weight
    shape = tuple(weight.shape[::-1]) if isinstance(module, Conv1D) else tuple(weight.shape)
    if shape != layout.shape or isinstance(module, Conv1D) != layout.transposed:
        raise KQuantError(
            f"the encoded matrix {found.on_disk!r} has the shape {list(layout.shape)}, where the model of config.json "
            f"has a {type(module).__name__} of {list(shape)}; the bundle is damaged, make it again"
        )
    if isinstance(module, nn.Embedding) and (reason := refusal(module, layout)):
        raise CannotRunFromCodesError(f"the encoded matrix {found.on_disk!r} {reason}")
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
