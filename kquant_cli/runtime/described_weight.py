"""What a module with an encoded matrix has for a `weight`: a description that cannot be computed with.

Models ask for the dtype, the device and the shape of a layer's weight, and get them. Some also multiply by the weight,
slice it, or change it in place, past the layer's own forward (Mamba's `dt_proj.weight @ x`, RWKV's `weight.div_(2)`):
there is nothing that could be multiplied, so that is an error, and never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from kquant_cli.runtime.cannot_run import CannotRunFromCodesError

# What depends on shape, dtype and device alone.
ATTRIBUTES: Final = (
    *("shape", "dtype", "device", "layout", "ndim", "nbytes", "itemsize", "requires_grad", "grad", "is_leaf"),
    *("is_cpu", "is_cuda", "is_meta", "is_mps", "is_sparse", "is_quantized"),
)
DESCRIBES: Final = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in ATTRIBUTES),
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__),
        *(Tensor.element_size, Tensor.stride, Tensor.get_device, torch.numel, torch.is_tensor),
        *(Tensor.is_contiguous, Tensor.is_floating_point, torch.is_floating_point, torch.is_complex),
    )
)


class DescribedWeight(Tensor):
    """Shape, dtype and device of the dense weight of the module `owner`; whatever needs its values is an error."""

    owner: str

    @classmethod
    def of(cls, owner: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> DescribedWeight:
        """One entry in memory, whatever the shape: NaN, for what may read it past torch."""
        described = torch.full((1, 1), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(cls)
        described.owner = owner
        described._is_hf_initialized = True  # type: ignore[attr-defined] # else GPT-2's initialisation would write to it
        return described

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DescribedWeight({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Raises CannotRunFromCodesError for all but what describes."""
        if func in DESCRIBES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise CannotRunFromCodesError(f"the model computes with the weight of {_owner(args)} past the layer's forward")


def _owner(args: Sequence[Any]) -> str:
    """The first described weight among the arguments, by its name where it has one."""
    for value in args:
        if isinstance(value, DescribedWeight):
            return f"the encoded {value.owner!r}" if value.owner else "an encoded matrix"
        if isinstance(value, list | tuple) and (found := _owner(value)) != "an encoded matrix":
            return found
    return "an encoded matrix"
