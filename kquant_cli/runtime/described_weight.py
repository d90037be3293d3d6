"""The dense weight of an encoded module, for whoever asks a module for its `weight`: decoded only where it is used.

Models ask for a weight's dtype, device and shape, which costs nothing. Trainers multiply by an output head's weight
without calling the head (TRL, fused losses), and DoRA takes its norm: the first operation on it decodes the matrix,
which stays as long as the tensor that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from kquant_cli.errors import KQuantError

VALUES = ("T", "mT", "H", "mH", "real", "imag")  # attributes that are no descriptions, as most methods are not
DESCRIPTIONS = {
    *(getattr(Tensor, name) for name in ("size", "dim", "stride", "numel", "nelement", "element_size", "get_device")),
    *(getattr(Tensor, name) for name in ("is_floating_point", "is_complex", "data_ptr", "__len__", "__hash__")),
    *(getattr(Tensor, name) for name in ("is_contiguous", "ndimension", "type", "is_inference", "requires_grad_")),
}
KEPT = {Tensor.detach, vars(torch._C.TensorBase)["data"].__get__}  # the same weight


class DescribedWeight(Tensor):
    """Shape, dtype and device of a dense weight, and its values when they are asked for; it cannot be written to."""

    decode: Callable[[], Tensor]
    decoded: Tensor | None

    @classmethod
    def of(cls, shape: Iterable[int], dtype: torch.dtype, device: torch.device, decode: Callable[[], Tensor]) -> Self:
        """A weight of that description; `decode()` gives it."""
        made: Any = torch.empty((1, 1), dtype=dtype, device=device).expand(*shape).as_subclass(cls)
        made.decode, made.decoded = decode, None
        made._is_hf_initialized = True  # GPT-2's initialisation of what is missing would write to it
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`func` of the description where that is enough, else of the decoded weight."""
        if func in KEPT:
            return args[0]
        name, attribute = func.__name__, getattr(getattr(func, "__self__", None), "__name__", "")
        accessor = name in ("__get__", "__set__")
        if (name, attribute) == ("__set__", "data") or name == "__setitem__" or _is_in_place(name):
            raise KQuantError(
                "an encoded weight cannot be written to: decode the bundle with `kquant decompress` and change that"
            )
        if func in DESCRIPTIONS or (accessor and attribute not in VALUES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(DescribedWeight, _values, (args, dict(kwargs or {})))
        return func(*args, **kwargs)


def _values(weight: DescribedWeight) -> Tensor:
    if weight.decoded is None:
        weight.decoded = weight.decode()
    return weight.decoded


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
