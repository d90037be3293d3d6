"""Watches the inputs of modules while a model runs, and sums their squares channel by channel: E[y_j^2].

Layers share an input when the very same numbers reach them: the same storage, the same view of it, and no change in
place between (torch counts those). A storage is known by a weak reference, so that none is kept, and none is taken for
another that came later to the same address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

PIECE = 1 << 22  # entries that are squared in float64 at a time


@dataclass
class Moments:
    """Sums of squares (channels,) float64 over `rows` tokens."""

    sums: Tensor
    rows: int


@dataclass
class Observer:
    """What has been seen: the moments of each different input, and which of these reached each module."""

    moments: list[Moments] = field(default_factory=list)
    reached: dict[nn.Module, list[int]] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _storages: dict[int, StorageWeakRef] = field(default_factory=dict)

    @contextmanager
    def watching(self, modules: Iterable[nn.Module], each: Callable[[], None]) -> Iterator[None]:
        """Record the inputs of `modules` in this context; `each` is called for every input."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            inputs = next((value for value in values if value.is_floating_point() and value.numel()), None)
            if inputs is not None:
                self.reached.setdefault(module, []).append(self._number(inputs))
                each()

        handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _number(self, inputs: Tensor) -> int:
        """The number of an input (..., channels): its own, or that of the same numbers seen before."""
        storage = StorageWeakRef(inputs.untyped_storage())
        self._storages.setdefault(storage.cdata, storage)  # while it is held, no other storage has this address
        view = inputs.shape[-1:] if inputs.is_contiguous() else (inputs.shape, inputs.stride())
        key = (storage.cdata, inputs._version, inputs.storage_offset(), inputs.numel(), inputs.dtype, *view)
        if key not in self._known:
            self._known[key] = len(self.moments)
            self.moments.append(_moments(inputs))
        return self._known[key]


def _moments(inputs: Tensor) -> Moments:
    rows = inputs.detach().reshape(-1, inputs.shape[-1])
    sums = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for piece in rows.split(max(1, PIECE // rows.shape[1])):
        sums += piece.double().square().sum(0)
    return Moments(sums.cpu(), len(rows))
