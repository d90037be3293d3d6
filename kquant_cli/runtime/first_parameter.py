"""The first floating-point parameter of a model, whose dtype transformers takes for the model's (`model.dtype`).

Of an encoded embedding that would be a codebook or a scale. So what is dense goes before what is encoded, as far as the
order of modules means nothing: in lists it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from kquant_cli.runtime.encoded_weight import EncodedWeight


def put_dense_first(model: nn.Module) -> None:
    """Have a dense parameter be the first floating-point one, where one can be."""
    first = next((owner for owner, parameter in _parameters(model) if parameter.is_floating_point()), None)
    if not isinstance(first, EncodedWeight) or (path := _path_to_dense(model)) is None:
        return
    parent: Any = model
    for name in path:
        if not _is_ordered(parent):
            parent._modules = {name: parent._modules[name], **parent._modules}
        parent = parent._modules[name]


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                yield module, parameter


def _path_to_dense(module: nn.Module) -> list[str] | None:
    """The names that lead to the first module with a dense parameter, of lists the first entry alone."""
    if isinstance(module, EncodedWeight):
        return None
    if any(p is not None and p.is_floating_point() for p in module._parameters.values()):
        return []
    for name, child in module._modules.items():
        if child is not None and (path := _path_to_dense(child)) is not None:
            return [name, *path]
        if _is_ordered(module):
            break
    return None


def _is_ordered(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)
