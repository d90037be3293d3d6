"""A linear layer that computes from the codes: y = x W^T + bias, and W is never held.

    y = scale (L_u (Cu[codes] S a) + L_v (Cv[codes] S b)) + bias,    a = R_u^T (x / d),  b = R_v^T (x / d)

the formula of encoded.py with the products taken from the right: the activations go through the right bases
(input_transform.py), through the packed codes (products/), and what comes out through the left ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.process_memory import let_go
from kquant_cli.runtime import blocks, cpu_layer
from kquant_cli.runtime.basis_cache import BasisCache
from kquant_cli.runtime.device_product import device_product
from kquant_cli.runtime.input_transform import InputTransform
from kquant_cli.runtime.operators import compiled_product, layout_key, unscaled
from kquant_cli.runtime.products import Packed

DTYPES = {"weight_codes": torch.uint8, "weight_codebook": torch.float32}  # others as stored, by default float16


class KashinLinear(nn.Module):
    """An encoded matrix in place of `nn.Linear(in_features, out_features)` (or of GPT-2's Conv1D).

    The parameters have the names and dtypes of the bundle's tensors (`weight_codes`, `weight_codebook`,
    `weight_scale`, ...) and keep their dtypes under `.to(dtype)`: a codebook in 16 bits would be another weight. A
    constant codebook is no parameter; `codebook` is the one or the other. `bias` is an ordinary parameter.
    `channel_scale` is what another layer stores and this one shares; None: there is none, or this layer's own.
    Gradients reach the input and the bias, not the codes.
    """

    weight_codes: nn.Parameter
    weight_codebook: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        layout: Layout,
        bias: nn.Parameter | None = None,
        dtypes: Mapping[str, torch.dtype] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.layout_key = layout_key(layout)
        self.out_features, self.in_features = layout.shape
        for name, shape in layout.tensor_shapes().items():
            dtype = (dtypes or {}).get(name) or DTYPES.get(name, torch.float16)
            empty = torch.empty(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        self.register_parameter("bias", bias)
        self.blocks: Tensor | None = None  # the codes, where `to_blocks` has laid them out
        self.ready = False  # for one call that computes the layer (cpu_layer.py)
        self.input_transform = InputTransform(layout.frame.right_u, layout.frame.right_v, layout.columns)
        self.left_bases = BasisCache()
        self.channel_scale: list[Tensor] = []  # in a list, so that no module but its owner has it as a parameter

    @classmethod
    def of(cls, encoded: EncodedMatrix, bias: nn.Parameter | None = None) -> KashinLinear:
        """The layer of an encoded matrix, on its device."""
        tensors = {name: tensor.to(encoded.codes.device) for name, tensor in encoded.to_tensors().items()}
        layer = cls(encoded.layout, bias, {name: tensor.dtype for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            setattr(layer, name, nn.Parameter(tensor, requires_grad=False))
        if encoded.channel_scale is not None and encoded.layout.channel_scale_from is not None:
            layer.channel_scale = [encoded.channel_scale]
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """y (..., out_features) of x (..., in_features), in x's dtype.

        On a CPU computed in float32 (float64 for float64); elsewhere sums are float32, and what goes from one step to
        the next has x's dtype.
        """
        if self.blocks is not None and x.device.type != "cpu":
            self._bring_codes(x.device)
        if self.ready and not torch.compiler.is_compiling() and cpu_layer.takes(x, self.bias):
            return self.input_transform.whole(x, self).view(*x.shape[:-1], self.out_features)
        scale, col_scale = self._own("weight_scale"), self._own("weight_col_scale")
        grouped = scale is not None and scale.shape[1] > 1
        group_scale = scale if grouped else None
        if torch.compiler.is_compiling():
            codes = self.weight_codes if self.blocks is None else self.blocks
            matrix = (codes, self._own("weight_codebook"), group_scale, col_scale, self.shared_channel_scale())
            y = compiled_product(x, *matrix, self.layout_key)
        else:
            group = self.layout.group if grouped else 0
            packed = Packed(self.weight_codes, self.codebook, self.in_features, group_scale, group, self.blocks)
            given = (self.layout, packed, x, self.shared_channel_scale(), col_scale, self.input_transform, self)
            if (whole := device_product(*given, scale, self.bias)) is not None:
                return whole
            inputs = self.input_transform(x, self.shared_channel_scale(), self)
            y = unscaled(self.layout, inputs, packed, col_scale, self.left_bases)
        if scale is not None and not grouped:
            y = y * scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def encoded(self) -> EncodedMatrix:
        """The matrix that the parameters hold."""
        tensors = {name: getattr(self, name).detach() for name in self.layout.tensor_shapes()}
        tensors["weight_codes"] = self.packed_codes()
        if (shared := self.shared_channel_scale()) is not None:
            tensors["weight_channel_scale"] = shared.detach().to(self.weight_codes.device)
        return EncodedMatrix.from_tensors(self.layout, tensors)

    def packed_codes(self) -> Tensor:
        """The codes as a bundle stores them (packing.py), wherever they are."""
        if self.blocks is None:
            return self.weight_codes.detach()
        return blocks.to_rows(self.blocks, self.out_features, self.in_features, self.layout.levels)

    def block_bytes(self) -> int:
        """What `to_blocks` needs; 0 where it does nothing."""
        if self.blocks is not None or self.weight_codes.device.type != "cpu" or self.layout.group:
            return 0
        levels = self.layout.levels
        return blocks.size(self.out_features, self.in_features, levels) if blocks.supports(levels) else 0

    def to_blocks(self, out: Tensor | None = None) -> None:
        """Lay the codes out as the CPU's fastest products read them (blocks.py), in `out` or in memory of their own.

        `weight_codes` keeps its shape and is empty from then on; `state_dict`, `encoded` and moves to other devices
        bring the codes back.
        """
        if self.block_bytes():
            codes = self.weight_codes.detach()
            self.blocks = blocks.to_blocks(codes, self.layout.levels, self.in_features, out)
            let_go(codes.data_ptr(), codes.nbytes)  # most often a part of a mapped file, the rest of which is needed
            self.weight_codes.data = torch.zeros(1, dtype=torch.uint8).expand(self.weight_codes.shape)
            self.ready = cpu_layer.supports(self)

    def to_rows(self) -> bool:
        """Undo `to_blocks`; whether there was something to undo."""
        if self.blocks is None:
            return False
        self.weight_codes.data, self.blocks, self.ready = self.packed_codes(), None, False
        return True

    @property
    def codebook(self) -> Tensor:
        """The codebook (levels, 1 or 2) on the codes' device: the constant one, which layers share, or this layer's."""
        constant = self.layout.grid_codebook(self.weight_codes.device)
        return self.weight_codebook if constant is None else constant

    @property
    def weight(self) -> Tensor:
        """Shape, dtype and device of the dense weight, for models that ask for them; every value is NaN.

        `encoded().decode()` is the weight itself.
        """
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        shape = self.layout.shape[::-1] if self.layout.transposed else self.layout.shape
        described: Any = torch.full((1, 1), torch.nan, dtype=dtype, device=self.weight_codes.device).expand(shape)
        described._is_hf_initialized = True  # GPT-2's initialisation of what is missing would write to it
        return described

    def extra_repr(self) -> str:
        """For print(model)."""
        layout = self.layout
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, levels={layout.levels}, "
            f"bias={self.bias is not None}"
        )

    def _own(self, name: str) -> Tensor | None:
        return getattr(self, name) if name in self._parameters else None

    def shared_channel_scale(self) -> Tensor | None:
        """The channel scale, this layer's own or another's."""
        own = self._own("weight_channel_scale")
        return own if own is not None or not self.channel_scale else self.channel_scale[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move as every module does, the shared channel scale too, but keep the dtypes of what is encoded."""
        laid_out = self.to_rows()
        names = self.layout.tensor_shapes()
        before = {name: getattr(self, name).detach() for name in names}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            after = getattr(self, name)
            if after.dtype != tensor.dtype:
                after.data = tensor.to(after.device)
        device = self.weight_codes.device
        if device.type != "meta":  # there is no copy to come back from
            self.channel_scale = [scale.to(device) for scale in self.channel_scale]
        if laid_out:
            self.to_blocks()  # where the codes are still on a CPU
        return self

    def _bring_codes(self, device: torch.device) -> None:
        """Have the codes where x is: what moved `weight_codes` there without asking the layer moved an empty one."""
        self.weight_codes = nn.Parameter(self.packed_codes().to(device), requires_grad=False)
        self.blocks, self.ready = None, False

    def __getstate__(self) -> dict[str, Any]:
        """With blocks of its own: those of a model's layers are one piece of memory, which a copy would take along."""
        return {**self.__dict__, "blocks": None if self.blocks is None else self.blocks.clone()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.blocks is not None:
            destination[prefix + "weight_codes"] = self.packed_codes()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        laid_out = self.to_rows()
        super()._load_from_state_dict(*args, **kwargs)
        if laid_out:
            self.to_blocks()
