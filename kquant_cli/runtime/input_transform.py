"""The activations of a layer in the coordinates of its right bases: all of the forward pass that depends on them alone.

    a = R_u^T (x / d),   b = R_v^T (x / d)        (d the channel scale, R_u and R_v the right bases; encoded.py)

Layers that read the same input (q, k and v; gate and up) have the same of all these, and compute them once: the first
that is called keeps a and b until the last has read them, or the input is gone. Where gradients are wanted each layer
computes its own: a shared part of the graph would be gone after one layer's `backward`. A tensor of inference mode does
not tell that it was written to, so there an input must not change between the first layer and the last.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kquant_cli.bases import BasisSpec, CoupledBases
from kquant_cli.runtime.basis_cache import BasisCache
from kquant_cli.runtime.basis_pair import adjoint_pair
from kquant_cli.runtime.products import asked_backend, cuda
from kquant_cli.runtime.products.cuda_trial import transform_passed


@dataclass
class InputTransform:
    """The change of coordinates that `readers` layers of one parent share."""

    right_u: BasisSpec | None
    right_v: BasisSpec | None
    columns: int  # of the codebook: with one there is no b
    readers: int = 1
    bases: BasisCache = field(default_factory=BasisCache, init=False, repr=False, compare=False)
    _kept: _Kept | None = field(default=None, init=False, repr=False, compare=False)

    def __call__(self, x: Tensor, channel_scale: Tensor | None, reader: object) -> tuple[Tensor, Tensor | None]:
        """a and b (tokens, in_features) of x (..., in_features), in x's dtype, but at least float32 on a CPU.

        b is None where the codebook has one column, and a itself where both bases are the same. `reader` is the layer
        that asks: one that asks again begins another pass.
        """
        return self._once("floats", x, reader, lambda: self._compute(x, channel_scale))

    def prepared(self, x: Tensor, channel_scale: Tensor | None, reader: object, digits: int) -> cuda.Activations:
        """The same as products/cuda.py multiplies it, for a look-up's `digits`; where `cuda.transforms` says yes."""
        pair = CoupledBases.of(self.right_u, self.right_v)
        assert pair is not None
        matrix = x.reshape(-1, x.shape[-1])
        return self._once(digits, x, reader, lambda: cuda.prepared(pair, matrix, channel_scale, digits))

    def _once(self, form: Hashable, x: Tensor, reader: object, compute: Callable[[], Any]) -> Any:
        """`compute()`, or what it was for this input when another reader asked for the same form."""
        if self.readers == 1 or (x.requires_grad and torch.is_grad_enabled()):
            return compute()
        kept = self._kept
        if kept is None or kept.input() is not x or kept.state != _state(x) or id(reader) in kept.read:
            # The callback frees what is kept when the input is freed, should a reader never come (a skipped layer).
            kept = self._kept = _Kept(weakref.ref(x, self._forget), _state(x))
        if form not in kept.values:
            kept.values[form] = compute()
        kept.read.add(id(reader))
        if len(kept.read) == self.readers:
            self._kept = None
        return kept.values[form]

    def _compute(self, x: Tensor, channel_scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = x.reshape(-1, x.shape[-1]).to(computed_dtype(x))
        channel_scale = None if channel_scale is None else channel_scale.to(x.device)
        pair = CoupledBases.of(self.right_u, self.right_v) if self.columns == 2 else None
        wanted = x.requires_grad and torch.is_grad_enabled()
        if pair is not None and not wanted and asked_backend() is None and transform_passed(pair, x):
            return cuda.floats(pair, x, channel_scale)
        inverse = None
        if channel_scale is not None:
            inverse = channel_scale.to(torch.promote_types(x.dtype, torch.float32)).reciprocal()
        both = self.columns == 2
        return adjoint_pair(self.right_u, self.right_v if both else None, x, inverse, both, self.bases)

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        if self._kept is not None and self._kept.input is gone:
            self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # what is kept belongs to a call, and is not copied or pickled


@dataclass
class _Kept:
    """The coordinates of one input in the forms that were asked for, and the ids of the layers that have read them."""

    input: weakref.ref[Tensor]
    state: tuple[Any, ...]
    values: dict[Hashable, Any] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)


def computed_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a layer computes in: x's own, but at least float32 on a CPU."""
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype


def _state(x: Tensor) -> tuple[Any, ...]:
    """What changes when the tensor is written to (where it tells), or between inference mode and others."""
    return None if x.is_inference() else x._version, torch.is_inference_mode_enabled()
