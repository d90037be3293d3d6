"""Puts modules that run from codes into a model without weights, after comparing config, files and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kquant_cli.bundle import read_layouts, require_tensors, require_version
from kquant_cli.encoded import Layout
from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_reader import read_tensor
from kquant_cli.runtime import blocks
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError
from kquant_cli.runtime.embedding import KashinEmbedding
from kquant_cli.runtime.encoded_weight import EncodedWeight
from kquant_cli.runtime.folder_check import loaded_tensors
from kquant_cli.runtime.linear import KashinLinear
from kquant_cli.runtime.linear_modules import (
    EncodedModule,
    find_modules,
    named_as_stored,
    require_blocks,
    require_place,
    require_same_modules,
    stored_parameters,
)
from kquant_cli.runtime.tied_modules import retie, tie_as_ever, tied_modules

CHANNEL_SCALE = "weight_channel_scale"


def place_layers(model: Any, config: Mapping[str, Any], files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Replace, in `model` (on the meta device), every module that the bundle has encoded; the rest stays as it is.

    So are modules that are tied to one of these, which share its parameters.

    `config` is the bundle's quantization_config and `files` its shards. Returns the layouts as JSON, by module of the
    model: what config.json has to say when the model is saved. Encoded matrices that the model has no place for (a
    head that it lacks) are left to transformers, which names them.

    Raises
    ------
    KQuantError
        Format, config, tensors and model do not fit each other; CannotRunFromCodesError where they do, but a matrix is
        neither a linear layer's nor an embedding's in this model.
    """
    folder = files[0].parent
    require_version(config["format_version"], folder)
    if other := [file.name for file in files if file.suffix != ".safetensors"]:
        raise KQuantError(f"{folder / other[0]}: a bundle's tensors are in safetensors files; make the bundle again")
    infos = loaded_tensors(files, resaved=config.get("resaved") is True)
    layouts = named_as_stored(model, read_layouts(folder, config), infos)
    require_tensors(folder, infos, layouts)
    encoded = find_modules(model, layouts)
    modules = {entry.on_disk: entry.module for entry in encoded}
    on_disk = {entry.module: entry.on_disk for entry in encoded}
    stored = stored_parameters(model, infos)
    tied = tied_modules(model, modules.values(), stored)
    filled = {f"{module}.weight" for module in (*on_disk, *tied)}
    require_blocks(model, [name for name in layouts if name not in modules], stored | filled)
    shared: dict[tuple[Any, ...], KashinLinear] = {}
    scales: dict[str, torch.Tensor] = {}
    for entry in [*encoded, *(EncodedModule(on_disk[owner], module) for module, owner in tied.items())]:
        layout = layouts[entry.on_disk]
        _require_supported(entry.on_disk, layout)
        old: Any = require_place(model, entry, layout)
        dtypes = {suffix: infos[f"{entry.on_disk}.{suffix}"].dtype for suffix in layout.tensor_shapes()}
        made: EncodedWeight
        if isinstance(old, nn.Embedding):
            made = KashinEmbedding(layout, old, dtypes, device="meta")
        else:
            made = KashinLinear(layout, old.bias, dtypes, device="meta")
            made.dense_dtype = old.weight.dtype
        if (owner := layout.channel_scale_from) is not None:
            if owner not in scales:
                with torch.device("cpu"):  # transformers builds models under the meta device
                    scales[owner] = read_tensor(infos[f"{owner}.{CHANNEL_SCALE}"])
            made.channel_scale = [scales[owner]]
        made.name = entry.module
        model.set_submodule(entry.module, made)
        if isinstance(made, KashinLinear):
            _share_input_transform(made, entry.module, owner or entry.on_disk, shared)
    require_same_modules(model, encoded, layouts)
    retie(model, {entry.module: layouts[entry.on_disk] for entry in encoded}, tied)
    model.tie_weights(recompute_mapping=False)
    return {entry.module: _renamed(layouts[entry.on_disk], modules).to_dict() for entry in encoded}


def encoded_weights(model: nn.Module) -> Iterator[tuple[str, EncodedWeight]]:
    """The modules whose weight is encoded, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, EncodedWeight))


def kashin_layers(model: nn.Module) -> Iterator[tuple[str, KashinLinear]]:
    """The layers that multiply by their codes, with their names."""
    return ((name, module) for name, module in encoded_weights(model) if isinstance(module, KashinLinear))


def lay_out(model: nn.Module) -> None:
    """Lay the codes of all layers out for a CPU (blocks.py), in one piece of memory, where that is faster.

    Those of a head that is tied stay as they are: its embedding reads them, too.
    """
    looked_up = {id(module.weight_codes) for _, module in encoded_weights(model) if isinstance(module, KashinEmbedding)}
    layers = [layer for _, layer in kashin_layers(model) if id(layer.weight_codes) not in looked_up]
    needed = {layer: size for layer in layers if (size := layer.block_bytes())}
    for layer, out in zip(needed, blocks.space(list(needed.values())), strict=True):
        layer.to_blocks(out)


def make_dense(model: Any, dtype: torch.dtype | None) -> Any:
    """`model` with what was replaced in its place again, every weight decoded, in `dtype` or the source's."""
    replaced = list(encoded_weights(model))
    owners = {id(module.weight_codes): name for name, module in replaced if isinstance(module, KashinEmbedding)}
    tied = {name: owner for name, module in replaced if (owner := owners.get(id(module.weight_codes), name)) != name}
    for name, module in replaced:
        model.set_submodule(name, module.dense(dtype))
    for name, owner in tied.items():
        model.get_submodule(name).weight = model.get_submodule(owner).weight
    tie_as_ever(model)
    return model


def _require_supported(name: str, layout: Layout) -> None:
    """A scale within a row can be taken into a product only where no basis mixes the row's columns."""
    right = layout.frame.right_u is not None or layout.frame.right_v is not None
    left = layout.frame.left_u is not None or layout.frame.left_v is not None
    if layout.scale is not None and layout.scale[1] > 1 and (right or left):
        raise CannotRunFromCodesError(
            f"the encoded matrix {name!r} has scales of groups of columns in a frame of bases, which do not run from "
            f"codes"
        )


def _share_input_transform(
    layer: KashinLinear, module: str, scale: str, shared: dict[tuple[Any, ...], KashinLinear]
) -> None:
    """Have the layers of one parent that may read one input compute its coordinates once."""
    frame, layout = layer.layout.frame, layer.layout
    layer.input_transform.layers.append(layer)
    parent = module.rpartition(".")[0]
    key = (parent, layer.in_features, frame.right_u, frame.right_v, layout.columns, layout.channel_scale and scale)
    first = shared.setdefault(key, layer)
    if first is not layer:
        first.input_transform.readers += 1
        first.input_transform.layers.append(layer)
        layer.input_transform = first.input_transform


def _renamed(layout: Layout, modules: Mapping[str, str]) -> Layout:
    owner = layout.channel_scale_from
    return layout if owner is None else replace(layout, channel_scale_from=modules[owner])
