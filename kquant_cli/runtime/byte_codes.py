"""Products of a few tokens with codes of a byte on a CPU, of evenly spaced levels: `uniform` at 8 bits (native/head.h).

    y_i = sum_g scale_ig s (sum_j (code_ij - 128) x_j + offset sum_j x_j) + bias_i,    u_k = s (k - 128 + offset)

over the columns j of group g, x divided by the channel scale. The head of a small language model is this: half the
bytes of a dense one in 16 bits, and the time of a token is that of reading them. More tokens are a product of decoded
tiles: here for 16 bits, where the processor multiplies bfloat16 (an error of 3e-3 in y), else as products/native.py has
it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kquant_cli.encoded import Frame, Layout
from kquant_cli.packing import word
from kquant_cli.runtime.cpu_layer import multiplies_bfloat16, takes
from kquant_cli.runtime.layer_loops import NUMBERS, ByteMatrixStruct, address, call, loops
from kquant_cli.runtime.products import asked_backend

FEW, FEW_16 = 32, 8  # tokens up to which decoding tiles takes longer, of float32 and of what is multiplied in bfloat16
TILE = 2**20  # weights decoded at a time
MIDDLE = 128
EVEN = 1e-6  # of the largest level, by how much levels may be off: float32's rounding


def supports(layout: Layout) -> bool:
    """Whether a matrix of this layout may be of this kind: its codebook says whether its levels are evenly spaced."""
    plain = layout.columns == 1 and layout.frame == Frame() and not layout.col_scale
    return plain and word(layout.levels) == (1, 1)


class ByteProduct:
    """The call of one layer, made anew when a tensor of its is another; copies and pickles start with none."""

    def __init__(self) -> None:
        self._made: tuple[tuple[int | None, ...], _Call | None] | None = None

    def __call__(self, layer: Any, x: Tensor) -> Tensor | None:
        """y (..., out_features) of x (..., in_features) in x's dtype; None: not here."""
        tokens = x.numel() // layer.in_features
        in_16 = x.dtype != torch.float32 and multiplies_bfloat16()
        if not tokens or (tokens > FEW and not in_16) or not takes(x, layer.bias) or asked_backend() is not None:
            return None
        tensors = (
            layer.weight_codes,
            layer.codebook,
            layer.own("weight_scale"),
            layer.shared_channel_scale(),
            layer.bias,
        )
        now = tuple(map(address, tensors))
        if self._made is None or self._made[0] != now:
            codes, codebook, *others = (None if t is None else t.detach() for t in tensors)
            assert codes is not None
            assert codebook is not None
            self._made = now, _Call.of(layer.layout, codes, codebook, *others)
        made = self._made[1]
        if made is None:
            return None
        return made.many(x) if in_16 and tokens > FEW_16 else made.few(x.contiguous(), tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteProduct, ()


class _Call:
    """The matrix as the loops read it, with all that it reads."""

    def __init__(self, layout: Layout, struct: ByteMatrixStruct, *tensors: Tensor | None) -> None:
        self._rows, self._work = layout.shape[0], layout.shape[0] * layout.shape[1]
        self._inverse, self._bias, *self._kept = tensors  # all, so that no address comes to mean another
        self._struct = struct
        self._address = ctypes.addressof(struct)

    @classmethod
    def of(
        cls,
        layout: Layout,
        codes: Tensor,
        codebook: Tensor,
        scale: Tensor | None,
        channel_scale: Tensor | None,
        bias: Tensor | None,
    ) -> _Call | None:
        """The call; None without a compiler, for levels not evenly spaced, or tensors that loops do not read."""
        tensors = [tensor for tensor in (codes, codebook, scale, channel_scale, bias) if tensor is not None]
        numbers = [tensor for tensor in (scale, bias) if tensor is not None]
        if (
            loops() is None
            or any(tensor.device.type != "cpu" or not tensor.is_contiguous() for tensor in tensors)
            or any(tensor.dtype not in NUMBERS for tensor in numbers)
            or (even := _even(codebook)) is None
        ):
            return None
        inverse = None if channel_scale is None else channel_scale.float().reciprocal()
        struct = ByteMatrixStruct(
            codes=address(codes),
            scale=address(scale),
            bias=address(bias),
            inverse=address(inverse),
            rows=layout.shape[0],
            columns=layout.shape[1],
            group=layout.group or layout.shape[1],
            scale_rows=0 if scale is None else len(scale),
            scale_dtype=0 if scale is None else NUMBERS[scale.dtype],
            bias_dtype=0 if bias is None else NUMBERS[bias.dtype],
            step=even[0],
            offset=even[1],
        )
        return cls(layout, struct, inverse, bias, codes, scale, codebook, channel_scale)

    def few(self, x: Tensor, tokens: int) -> Tensor:
        """y (..., rows) of x (..., columns), a few tokens, contiguous."""
        y = x.new_empty(*x.shape[:-1], self._rows)
        arguments = (self._address, x.data_ptr(), NUMBERS[x.dtype], tokens, y.data_ptr())
        call("kquant_bytes", *arguments, work=tokens * self._work)
        return y

    def many(self, x: Tensor) -> Tensor:
        """The same by tiles of rows in bfloat16, of any number of tokens."""
        a = x.reshape(-1, x.shape[-1])
        a = (a if self._inverse is None else a * self._inverse).bfloat16()
        y = a.new_empty(len(a), self._rows)
        step = min(self._rows, max(1, TILE // x.shape[-1]))
        tile = a.new_empty(step, x.shape[-1])
        for begin in range(0, self._rows, step):
            count = min(step, self._rows - begin)
            call("kquant_byte_rows", self._address, begin, count, tile.data_ptr(), work=tile.numel())
            torch.mm(a, tile[:count].T, out=y[:, begin : begin + count])
        y = y.to(x.dtype)
        return (y if self._bias is None else y + self._bias.to(x.dtype)).view(*x.shape[:-1], self._rows)


def _even(codebook: Tensor) -> tuple[float, float] | None:
    """(s, offset) of u_k = s (k - 128 + offset); None where the levels (levels, 1) are not evenly spaced."""
    levels = codebook.double().flatten()
    step = float(levels[-1] - levels[0]) / (len(levels) - 1)
    spaced = levels[0] + step * torch.arange(len(levels), dtype=torch.float64)
    if not step or float((levels - spaced).abs().max()) > EVEN * float(levels.abs().max()):
        return None
    return step, float(levels[0]) / step + MIDDLE
