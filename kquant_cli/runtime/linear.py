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

from kquant_cli.encoded import Layout
from kquant_cli.process_memory import let_go
from kquant_cli.runtime import blocks, byte_codes, cpu_layer
from kquant_cli.runtime.basis_cache import BasisCache
from kquant_cli.runtime.byte_codes import ByteProduct
from kquant_cli.runtime.device_product import device_product
from kquant_cli.runtime.encoded_weight import EncodedWeight
from kquant_cli.runtime.input_transform import InputTransform
from kquant_cli.runtime.operators import compiled_product, unscaled
from kquant_cli.runtime.products import Packed


class KashinLinear(EncodedWeight):
    """An encoded matrix in place of `nn.Linear(in_features, out_features)` (or of GPT-2's Conv1D).

    `bias` is an ordinary parameter, all else of `EncodedWeight`. An output head may share that with an embedding.
    Gradients reach the input and the bias, not the codes.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        layout: Layout,
        bias: nn.Parameter | None = None,
        dtypes: Mapping[str, torch.dtype] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(layout, bias, dtypes, device)
        self.out_features, self.in_features = layout.shape
        self.register_parameter("bias", bias)
        self.blocks: Tensor | None = None  # the codes, where `to_blocks` has laid them out
        self.ready = False  # for one call that computes the layer (cpu_layer.py)
        self.input_transform = InputTransform(layout.frame.right_u, layout.frame.right_v, layout.columns)
        self.left_bases = BasisCache()
        self.bytes = ByteProduct() if byte_codes.supports(layout) else None

    def forward(self, x: Tensor) -> Tensor:
        """y (..., out_features) of x (..., in_features), in x's dtype.

        On a CPU computed in float32 (float64 for float64); elsewhere sums are float32, and what goes from one step to
        the next has x's dtype.
        """
        if self.blocks is not None and x.device.type != "cpu":
            self._bring_codes(x.device)
        if self.ready and not torch.compiler.is_compiling() and cpu_layer.takes(x, self.bias):
            return self.input_transform.whole(x, self).view(*x.shape[:-1], self.out_features)
        if self.bytes is not None and not torch.compiler.is_compiling() and (y := self.bytes(self, x)) is not None:
            return y
        scale, col_scale = self.own("weight_scale"), self.own("weight_col_scale")
        grouped = scale is not None and scale.shape[1] > 1
        group_scale = scale if grouped else None
        if torch.compiler.is_compiling():
            codes = self.weight_codes if self.blocks is None else self.blocks
            matrix = (codes, self.own("weight_codebook"), group_scale, col_scale, self.shared_channel_scale())
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

    def dense(self, dtype: torch.dtype | None) -> nn.Module:
        """The module that this one replaced, with the decoded weight in `dtype` or the source's."""
        from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 (seconds to import)

        weight = self.encoded().decode(dtype or getattr(torch, self.layout.dtype))
        with torch.device("meta"):
            made: Any = (
                Conv1D(self.out_features, self.in_features)
                if self.layout.transposed
                else nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
            )
        made.weight = nn.Parameter((weight.T if self.layout.transposed else weight).contiguous(), requires_grad=False)
        made.bias = self.bias
        return made

    @property
    def described_dtype(self) -> torch.dtype:
        """That of the bias, which follows the model's."""
        return self.dense_dtype if self.bias is None else self.bias.dtype

    def extra_repr(self) -> str:
        """For print(model)."""
        layout = self.layout
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, levels={layout.levels}, "
            f"bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        laid_out = self.to_rows()
        super()._apply(fn, recurse)
        self.bytes = None if self.bytes is None else ByteProduct()  # which would keep what is moved
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
