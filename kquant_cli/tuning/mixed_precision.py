"""A model in 16 bits whose tuned parameters stay in float32: of operations on two dtypes at once torch's are slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kquant_cli.devices import multiplies_bfloat16


def computed_dtype(device: torch.device) -> torch.dtype:
    """What products are computed in: bfloat16 where that is faster."""
    return torch.bfloat16 if device.type == "cuda" or multiplies_bfloat16() else torch.float32


class _Cast(nn.Module):
    """A parameter as its module computes with it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, value: Tensor) -> Tensor:
        """The value in the dtype."""
        return value.to(self.dtype)


def in_dtype(model: Any, kept: Mapping[str, nn.Parameter], dtype: torch.dtype) -> tuple[Any, dict[str, nn.Parameter]]:
    """The model, computing in `dtype`, and its parameters `kept`, by the same keys, still in float32."""
    places = {id(parameter): key for key, parameter in kept.items()}
    values = {key: parameter.detach().float().clone() for key, parameter in kept.items()}
    found: dict[str, nn.Parameter] = {}
    modules = [
        (module, name, places[id(p)])
        for module in model.modules()
        for name, p in module._parameters.items()
        if id(p) in places
    ]
    model.to(dtype)
    for module, name, key in modules:
        if key in found:  # shared with a module before
            module._parameters[name] = found[key]
            continue
        parametrize.register_parametrization(module, name, _Cast(dtype), unsafe=True)
        original: nn.Parameter = module.parametrizations[name].original
        original.data = values[key]
        found[key] = original
    return model, found


def original(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter behind `name` of a module: in float32, where it is one of those kept; None where there is none."""
    if parametrize.is_parametrized(module, name):
        found: nn.Parameter = module.parametrizations[name].original  # type: ignore[index,union-attr]
        return found
    return module._parameters.get(name)
