"""Parameters on disk that are in memory while their module runs, and no longer."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

import torch
from torch import Tensor, nn

from kquant_cli.calibration.lazy_tensor import LazyTensor

TRIMMED: Final = 1 << 22  # bytes of parameters after which freed memory is given back to the system


def load_on_demand(model: nn.Module, device: torch.device) -> None:
    """Have `model` run on `device`: what is in memory moves there, each parameter on disk is read when its module runs.

    Of an embedding's table, the rows are read as they are looked up (lazy_tensor.py).
    """
    freed = Freed()
    moved: dict[int, tuple[Any, Any]] = {}  # what is tied stays so: each tensor, and what it has become
    for module in model.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    moved[id(tensor)] = tensor, _moved(tensor, device)
                tensors[name] = moved[id(tensor)][1]
        on_disk: dict[str, Any] = {n: t for n, t in module._parameters.items() if isinstance(t, LazyTensor)}
        if on_disk and not isinstance(module, nn.Embedding):
            _stream(module, on_disk, freed)


class Freed:
    """Gives freed memory back to the system now and then; else the C library keeps it, more with every block."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._bytes = 0

    def add(self, count: int) -> None:
        """So many bytes have been freed."""
        self._bytes += count
        if self._bytes >= TRIMMED and self._trim is not None:
            self._trim(0)
            self._bytes = 0


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor for `device`: a parameter stays on disk, if it is there; a buffer is read."""
    if not isinstance(tensor, nn.Parameter):
        return (tensor.read() if isinstance(tensor, LazyTensor) else tensor).to(device)
    return nn.Parameter(tensor.on(device) if isinstance(tensor, LazyTensor) else tensor.to(device), False)


def _stream(module: nn.Module, on_disk: dict[str, Any], freed: Freed) -> None:
    def load(module: nn.Module, args: Any) -> None:
        for name, tensor in on_disk.items():
            module._parameters[name] = nn.Parameter(tensor.read(), requires_grad=False)

    def unload(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(on_disk)
        freed.add(sum(tensor.numel() * tensor.dtype.itemsize for tensor in on_disk.values()))

    module.register_forward_pre_hook(load)
    module.register_forward_hook(unload, always_call=True)
