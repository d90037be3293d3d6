"""The activations of a layer in the coordinates of its right bases: all of the forward pass that depends on them alone.

    a = R_u^T (x / d),   b = R_v^T (x / d)        (d the channel scale, R_u and R_v the right bases; encoded.py)

Layers that read the same input (q, k and v; gate and up) have the same of all these, and compute them once: the first
that is called keeps them until the last has read them, or the input is gone. On a CPU a few tokens go through all of
the layers in one call (cpu_layer.py), whose outputs are kept in the same way; where it turns out that not all read one
input (q of a cross-attention does not read what k and v do), each computes its own from then on. Where gradients are
wanted each layer computes its own, too: a shared part of the graph would be gone after one layer's `backward`. A tensor
of inference mode does not tell that it was written to, so there an input must not change between the first layer and
the last.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kquant_cli.bases import BasisSpec, CoupledBases
from kquant_cli.runtime import cpu_layer
from kquant_cli.runtime.basis_cache import BasisCache
from kquant_cli.runtime.basis_pair import adjoint_pair
from kquant_cli.runtime.coupled_frame import RightBases
from kquant_cli.runtime.cpu_layer import InOneCall
from kquant_cli.runtime.products import asked_backend, cuda
from kquant_cli.runtime.products.cuda_trial import transform_passed
from kquant_cli.runtime.products.lookup import FEW


@dataclass
class InputTransform:
    """The change of coordinates that `readers` layers of one parent share."""

    right_u: BasisSpec | None
    right_v: BasisSpec | None
    columns: int  # of the codebook: with one there is no b
    readers: int = 1
    bases: BasisCache = field(default_factory=BasisCache, init=False, repr=False, compare=False)
    layers: list[InOneCall] = field(default_factory=list, init=False, repr=False, compare=False)  # those that read
    together: bool = field(default=True, init=False, repr=False, compare=False)  # until it turns out otherwise
    _kept: _Kept | None = field(default=None, init=False, repr=False, compare=False)
    _calls: dict[tuple[int, ...], cpu_layer.CpuLayer] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, x: Tensor, channel_scale: Tensor | None, reader: object) -> tuple[Tensor, Tensor | None]:
        """a and b (tokens, in_features) of x (..., in_features), in x's dtype, but at least float32 on a CPU.

        b is None where the codebook has one column, and a itself where both bases are the same. `reader` is the layer
        that asks: one that asks again begins another pass.
        """
        if not self._changes(channel_scale):
            return self._compute(x, None)
        both: tuple[Tensor, Tensor | None] = self._once("floats", x, reader, lambda: self._compute(x, channel_scale))
        return both

    def prepared(self, x: Tensor, channel_scale: Tensor | None, reader: object, digits: int) -> cuda.Activations:
        """The same as products/cuda.py multiplies it, for a look-up's `digits`; where `cuda.transforms` says yes."""
        right = RightBases.of(self.right_u, self.right_v)
        assert right is not None
        matrix = x.reshape(-1, x.shape[-1])
        made: cuda.Activations = self._once(
            digits, x, reader, lambda: cuda.prepared(right.pair, matrix, channel_scale, digits, None, right.split)
        )
        return made

    def whole(self, x: Tensor, reader: InOneCall) -> Tensor:
        """y (tokens, out_features) of the layer `reader`, which is `ready`, in x's dtype; cpu_layer.takes(x)."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if len(rows) > FEW:
            call = self._call_of([reader])
            changed = self._changes(reader.shared_channel_scale())
            a = self._once("first", x, reader, lambda: call.coordinates(rows)) if changed else call.coordinates(rows)
            return call.many(a, x.dtype)
        if self._kept is not None and self._kept.input() is not x:
            self._drop()
        if self.readers == 1 or not self.together or not all(layer.ready for layer in self.layers):
            return self._call_of([reader]).few(rows)[0]
        outputs = self._once("outputs", x, reader, lambda: self._call_of(self.layers).few(rows))
        found: Tensor = outputs[self.layers.index(reader)]
        return found

    def _changes(self, channel_scale: Tensor | None) -> bool:
        """Whether there is something to keep: else the coordinates are x itself."""
        return self.right_u is not None or self.right_v is not None or channel_scale is not None

    def _call_of(self, layers: list[InOneCall]) -> cpu_layer.CpuLayer:
        key = tuple(map(id, layers))
        call = self._calls.get(key)
        if call is None or not call.is_current():
            call = self._calls[key] = cpu_layer.CpuLayer(layers)
        return call

    def _once(self, form: Hashable, x: Tensor, reader: object, compute: Callable[[], Any]) -> Any:
        """`compute()`, or what it was for this input when another reader asked for the same form."""
        if self.readers == 1 or (x.requires_grad and torch.is_grad_enabled()):
            return compute()
        kept = self._kept
        if kept is None or kept.input() is not x or kept.state != _state(x) or id(reader) in kept.read:
            self._drop()
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
            self._drop()

    def _drop(self) -> None:
        """Keep nothing; outputs that were computed for nobody say that these layers do not read one input."""
        if self._kept is not None and "outputs" in self._kept.values:
            self.together = False
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_calls": {}}  # these belong to a process's memory


@dataclass
class _Kept:
    """What was computed of one input, by its form, and the ids of the layers that have read it."""

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
