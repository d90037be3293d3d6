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
from torch.utils._pytree import tree_leaves, tree_map_only

from kquant_cli.runtime.cannot_run import CannotRunFromCodesError

VALUES = ("T", "mT", "H", "mH", "real", "imag")  # attributes that are no descriptions, as most methods are not
ATTRIBUTES = (
    *("shape", "dtype", "device", "layout", "ndim", "nbytes", "itemsize", "requires_grad", "grad", "is_leaf"),
    *("is_cpu", "is_cuda", "is_meta", "is_mps", "is_sparse", "is_quantized"),
)
DESCRIPTIONS = frozenset(  # of shape, dtype and device; a set, since torch.compile can look into one
    (
        *(getattr(Tensor, name).__get__ for name in ATTRIBUTES),
        *(getattr(Tensor, name) for name in ("size", "dim", "stride", "numel", "nelement", "element_size")),
        *(getattr(Tensor, name) for name in ("is_floating_point", "is_complex", "data_ptr", "__len__", "__hash__")),
        *(getattr(Tensor, name) for name in ("is_contiguous", "ndimension", "type", "is_inference", "get_device")),
        *(Tensor.requires_grad_, torch.numel, torch.is_tensor, torch.is_floating_point, torch.is_complex),
    )
)
KEPT = {Tensor.detach, vars(torch._C.TensorBase)["data"].__get__}  # the same weight


class DescribedWeight(Tensor):
    """Shape, dtype and device of a dense weight, and its values when they are asked for; it cannot be written to."""

    owner: str
    decode: Callable[[], Tensor]
    decoded: Tensor | None

    @classmethod
    def of(
        cls, owner: str, shape: Iterable[int], dtype: torch.dtype, device: torch.device, decode: Callable[[], Tensor]
    ) -> Self:
        """A weight of that description, of the module `owner`; `decode()` gives it.

        In memory it is one entry: NaN, for what may read it past torch.
        """
        made: Any = torch.full((1, 1), torch.nan, dtype=dtype, device=device).expand(*shape).as_subclass(cls)
        made.owner, made.decode, made.decoded = owner, decode, None
        made._is_hf_initialized = True  # GPT-2's initialisation of what is missing would write to it
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DescribedWeight({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`func` of the description where that is enough, else of the decoded weight."""
        if func in DESCRIPTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func in KEPT:
            return args[0]
        name, attribute = func.__name__, getattr(getattr(func, "__self__", None), "__name__", "")
        accessor = name in ("__get__", "__set__")
        if (name, attribute) == ("__set__", "data") or name == "__setitem__" or _is_in_place(name):
            raise CannotRunFromCodesError(f"the model writes to the weight of {_owner(args)}")
        if accessor and attribute not in VALUES:
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


def _owner(args: tuple[Any, ...]) -> str:
    """The module of the first described weight among the arguments, by its name where it has one."""
    owners = [value.owner for value in tree_leaves(args) if isinstance(value, DescribedWeight)]
    return f"the encoded {owners[0]!r}" if owners and owners[0] else "an encoded matrix"
