"""A module whose weight is an encoded matrix: its tensors as parameters, which stay what they are in any dtype.

`KashinLinear` multiplies by such a weight (linear.py), and `KashinEmbedding` looks rows of it up (embedding.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.runtime.described_weight import DescribedWeight
from kquant_cli.runtime.operators import layout_key

DTYPES = {"weight_codes": torch.uint8, "weight_codebook": torch.float32}  # others as stored, by default float16


class EncodedWeight(nn.Module):
    """An encoded matrix (out_features, in_features) as the weight of a module.

    The parameters have the names and dtypes of the bundle's tensors (`weight_codes`, `weight_codebook`,
    `weight_scale`, ...) and keep their dtypes under `.to(dtype)`: a codebook in 16 bits would be another weight. A
    constant codebook is no parameter; `codebook` is the one or the other. `channel_scale` is what another layer stores
    and this one shares; None: there is none, or this layer's own.
    """

    weight_codes: nn.Parameter
    weight_codebook: nn.Parameter

    def __init__(
        self,
        layout: Layout,
        other: Any = None,
        dtypes: Mapping[str, torch.dtype] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.name = ""  # in the model, for messages
        self.layout = layout
        self.layout_key = layout_key(layout)
        self.dense_dtype = torch.float32  # of a dense weight here, which `.to(dtype)` changes
        for name, shape in layout.tensor_shapes().items():
            dtype = (dtypes or {}).get(name) or DTYPES.get(name, torch.float16)
            empty = torch.empty(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        self.channel_scale: list[Tensor] = []  # in a list, so that no module but its owner has it as a parameter

    @classmethod
    def of(cls, encoded: EncodedMatrix, other: Any = None) -> Self:
        """The module of an encoded matrix, on its device; `other` is what the class takes after the layout."""
        tensors = {name: tensor.to(encoded.codes.device) for name, tensor in encoded.to_tensors().items()}
        made = cls(encoded.layout, other, {name: tensor.dtype for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            setattr(made, name, nn.Parameter(tensor, requires_grad=False))
        if encoded.channel_scale is not None and encoded.layout.channel_scale_from is not None:
            made.channel_scale = [encoded.channel_scale]
        return made

    def encoded(self) -> EncodedMatrix:
        """The matrix that the parameters hold."""
        tensors = {name: getattr(self, name).detach() for name in self.layout.tensor_shapes()}
        tensors["weight_codes"] = self.packed_codes()
        if (shared := self.shared_channel_scale()) is not None:
            tensors["weight_channel_scale"] = shared.detach().to(self.weight_codes.device)
        return EncodedMatrix.from_tensors(self.layout, tensors)

    def packed_codes(self) -> Tensor:
        """The codes as a bundle stores them (packing.py)."""
        return self.weight_codes.detach()

    @property
    def codebook(self) -> Tensor:
        """The codebook (levels, 1 or 2) on the codes' device: the constant one, which layers share, or this layer's."""
        constant = self.layout.grid_codebook(self.weight_codes.device)
        return self.weight_codebook if constant is None else constant

    @property
    def described_dtype(self) -> torch.dtype:
        """The dtype that a dense weight would have here."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The dense weight, for models that ask for its shape, dtype or device; decoded by who computes with it."""
        shape = self.layout.shape[::-1] if self.layout.transposed else self.layout.shape
        dtype, device = self.described_dtype, self.weight_codes.device
        return DescribedWeight.of(self.name, shape, dtype, device, partial(self._decode, dtype))

    def _decode(self, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            weight = self.encoded().decode(dtype)
        return weight.T if self.layout.transposed else weight

    def dense(self, dtype: torch.dtype | None) -> nn.Module:
        """The module that this one replaced, with the decoded weight in `dtype` or the source's."""
        raise NotImplementedError

    def own(self, name: str) -> Tensor | None:
        """The parameter of that name, if the module has one."""
        return getattr(self, name) if name in self._parameters else None

    def shared_channel_scale(self) -> Tensor | None:
        """The channel scale, this module's own or another's."""
        own = self.own("weight_channel_scale")
        return own if own is not None or not self.channel_scale else self.channel_scale[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move as every module does, the shared channel scale too, but keep the dtypes of what is encoded."""
        names = self.layout.tensor_shapes()
        before = {name: getattr(self, name).detach() for name in names}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            after = getattr(self, name)
            if after.dtype != tensor.dtype:
                after.data = tensor.to(after.device)
        self.dense_dtype = fn(torch.empty(0, dtype=self.dense_dtype)).dtype
        device = self.weight_codes.device
        if device.type != "meta":  # there is no copy to come back from
            self.channel_scale = [scale.to(device) for scale in self.channel_scale]
        return self
