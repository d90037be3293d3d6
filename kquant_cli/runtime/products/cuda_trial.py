"""The CUDA kernels at their first use on a device, for each format and shape, against float64 (trial.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.runtime.products import cuda, reference
from kquant_cli.runtime.products.look_up import LookUp
from kquant_cli.runtime.products.packed import Packed
from kquant_cli.runtime.products.trial import passed, relative_error

BOUNDS = {torch.float16: 1e-3, torch.bfloat16: 6e-3}  # results are rounded to 2e-4 and 2e-3


def transform_passed(pair: CoupledBases, x: Tensor) -> bool:
    """Whether `cuda.floats` takes x (tokens, columns), and gives a and b for its like."""
    if not cuda.transforms(pair, x, cuda.FLOAT_TOKENS):
        return False

    def error() -> float:
        draw, expected_a, expected_b = _drawn(pair, x, 2)
        a, b = cuda.floats(pair, *draw)
        return max(relative_error(a.double(), expected_a), relative_error(b.double(), expected_b))

    return passed(("activations.cu", x.device, pair.size, x.dtype), error, BOUNDS[x.dtype])


def product_passed(
    pair: CoupledBases | None, packed: Packed, found: LookUp, x: Tensor, left: CoupledBases | None = None
) -> bool:
    """Whether `cuda.prepared` and `cuda.product` take x and `packed`, and give y, scales and bias included.

    On the output side, that of `left`, `cuda.outputs` too; `pair` is then that of the one right basis, or None.
    """
    if not cuda.transforms(pair, x) or (left is not None and not cuda.has_room(left)):
        return False
    tokens, split = cuda.padded(len(x)), left is not None
    if cuda.plan(packed.rows, packed.columns, found, tokens, x.device, split) is None:
        return False

    def error() -> float:
        draw, a, b = _drawn(pair, x, tokens)
        generator = torch.Generator().manual_seed(packed.rows)
        codes = torch.randint(256, packed.codes.shape, generator=generator, dtype=torch.uint8).to(x.device)
        scale, bias = torch.rand(2, packed.rows, generator=generator).to(x.device)
        column_scale = (torch.rand(packed.columns, generator=generator) + 0.5).to(x.device)
        of_x = cuda.prepared(pair, *draw, found.digits, column_scale, split)
        any_codes = Packed(codes, packed.codebook, packed.columns)
        y = cuda.product(any_codes, found, of_x, scale.unsqueeze(1), bias, x.dtype, left)
        plain, apart = reference.product(any_codes, a * column_scale, (a if split else b) * column_scale, split)
        if left is not None and apart is not None:
            plain = basis_for(left.first).apply(plain) + basis_for(left.second).apply(apart)
        return relative_error(y, plain * scale.double() + bias.double())

    key = (packed.levels, found.kind, tokens, packed.rows, packed.columns, x.dtype)
    if left is not None:
        return passed(("outputs.cu", x.device, *key, pair is not None), error, BOUNDS[x.dtype])
    return passed(("product.cu", x.device, *key), error, BOUNDS[x.dtype])


def _drawn(pair: CoupledBases | None, like: Tensor, tokens: int) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """x (tokens, columns) and a channel scale, on the device, and their a and b in float64."""
    columns = like.shape[1]
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(tokens, columns, generator=generator).to(like.dtype)
    channel_scale = torch.rand(columns, generator=generator) + 0.5
    scaled = x.double() / channel_scale.double()
    specs = (None, None) if pair is None else (pair.first, pair.second)
    a, b = ((scaled if spec is None else basis_for(spec).adjoint(scaled)).to(like.device) for spec in specs)
    return (x.to(like.device), channel_scale.to(like.device)), a, b
