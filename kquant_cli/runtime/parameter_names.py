"""Which module of a model an encoded matrix belongs to: names on disk become modules as transformers itself maps them.

transformers renames what a checkpoint holds (OPT's `decoder.`, prefixes of BERT and GPT-2, old names of new models) and
fuses some of it (experts). The same functions are asked here, before anything is loaded, about `M.weight` and then
about every tensor that replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from kquant_cli.encoded import Layout
from kquant_cli.errors import KQuantError

WEIGHT = ".weight"


class CannotRunFromCodesError(KQuantError):
    """The model has a place for the matrix, but not one that a layer of ours can take."""


@dataclass(frozen=True)
class Place:
    """An encoded matrix and the module whose weight it is."""

    on_disk: str
    module: str


def find_places(model: Any, names: Iterable[str]) -> list[Place]:
    """The module of every encoded matrix of `names` (module names on disk) that `model` (on meta) has one for.

    Raises
    ------
    CannotRunFromCodesError
        transformers fuses the matrix with others, or its module is no linear layer.
    """
    rename = renaming(model)
    places = []
    for name in names:
        target, fused = rename(name + WEIGHT)
        if fused:
            raise CannotRunFromCodesError(
                f"the encoded matrix {name!r} is one part of {target!r}, which transformers fuses from several: "
                f"{type(model).__name__} cannot run from codes; decode it with `kquant decompress`"
            )
        if target is not None:
            places.append(Place(name, target.removesuffix(WEIGHT)))
    return places


def require_linear(model: nn.Module, place: Place, layout: Layout) -> nn.Module:
    """The module at `place`, a linear layer of the layout's shape; CannotRunFromCodesError where it is none."""
    module = model.get_submodule(place.module)
    if not isinstance(module, nn.Linear | Conv1D):
        raise CannotRunFromCodesError(
            f"the encoded matrix {place.on_disk!r} is the weight of a {type(module).__name__}, and only linear layers "
            f"run from codes; decode it with `kquant decompress`"
        )
    weight = module.weight
    shape = tuple(weight.shape[::-1]) if isinstance(module, Conv1D) else tuple(weight.shape)
    if shape != layout.shape or isinstance(module, Conv1D) != layout.transposed:
        raise KQuantError(
            f"the encoded matrix {place.on_disk!r} has the shape {list(layout.shape)}, where the model of config.json "
            f"has a {type(module).__name__} of {list(shape)}; the bundle is damaged, make it again"
        )
    return module


def require_same_places(model: Any, places: Iterable[Place], layouts: Mapping[str, Layout]) -> None:
    """CannotRunFromCodesError where transformers would take a matrix's tensors elsewhere than its weight."""
    rename = renaming(model)
    for place in places:
        for suffix in layouts[place.on_disk].tensor_shapes():
            if rename(f"{place.on_disk}.{suffix}")[0] != f"{place.module}.{suffix}":
                raise CannotRunFromCodesError(
                    f"transformers takes the weight of {place.on_disk!r} to {place.module!r}, but not its {suffix}: "
                    f"{type(model).__name__} cannot run from codes; decode it with `kquant decompress`"
                )


def renaming(model: Any) -> Callable[[str], tuple[str | None, bool]]:
    """What transformers makes of a tensor's name on disk: the name in `model`, or None; and whether it is fused."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state: dict[str, Any] = model.state_dict()

    def rename(name: str) -> tuple[str | None, bool]:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state:  # the loader's own second try
            plain, _ = rename_source_key(name, [], [], model.base_model_prefix, state)
            target, pattern = (plain, None) if plain in state else (target, pattern)
        return (target if target in state else None), pattern is not None and target in state

    return rename
