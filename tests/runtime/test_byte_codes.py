"""Products with codes of a byte, of evenly spaced levels: what the head of a small model is at 8 bits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.encoders import encode
from kquant_cli.native import library
from kquant_cli.runtime import byte_codes
from kquant_cli.runtime.cpu_layer import multiplies_bfloat16
from kquant_cli.runtime.linear import KashinLinear

needs_compiler = pytest.mark.skipif(library("layer") is None, reason="no compiler")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def layer_of(rows: int, columns: int, levels: int = 256, group: int = 64, bias: bool = True) -> KashinLinear:
    """A random matrix rounded by `uniform`, with a row of zeros."""
    generator = torch.Generator().manual_seed(rows + columns + levels)
    weight = torch.randn(rows, columns, generator=generator)
    weight[rows // 2] = 0
    encoded = encode(weight, EncoderConfig(encoder="uniform", levels=levels, group_size=group))
    added = nn.Parameter(torch.randn(rows, generator=generator), requires_grad=False) if bias else None
    return KashinLinear.of(encoded, added)


def product(layer: KashinLinear, x: torch.Tensor) -> torch.Tensor:
    """By the loops, which say no where they do not compute it; float64."""
    with torch.no_grad():
        assert layer.bytes is not None
        y = layer.bytes(layer, x)
    assert y is not None
    assert y.dtype == x.dtype
    return y.double()


def expected(layer: KashinLinear, x: torch.Tensor) -> torch.Tensor:
    """The decoded weight's product in float64."""
    y = x.double() @ layer.encoded().decode(torch.float64).T
    return y if layer.bias is None else y + layer.bias.double()


@needs_compiler
@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 32])
@pytest.mark.parametrize(
    ("rows", "columns", "levels", "group"),
    [(70, 96, 256, 64), (5, 7, 256, 64), (1, 1, 256, 64), (66, 80, 256, 100), (33, 150, 131, 37), (64, 64, 200, 0)],
)
def test_products_are_those_of_the_decoded_weight(tokens, rows, columns, levels, group):
    layer = layer_of(rows, columns, levels, group, bias=tokens % 2 == 0)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
    reference = expected(layer, x)
    assert (product(layer, x) - reference).abs().max() <= 1e-5 * (1 + reference.abs().max())


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_numbers_of_16_bits(dtype):
    layer = layer_of(130, 192).to(dtype)
    x = torch.randn(2, 3, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    reference = expected(layer, x)
    found = product(layer, x)
    assert found.shape == (2, 3, 130)
    assert (found - reference).abs().max() <= TOLERANCES[dtype] * reference.abs().max()


@needs_compiler
@pytest.mark.skipif(not multiplies_bfloat16(), reason="needs a processor that multiplies bfloat16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("columns", "group"), [(192, 64), (150, 37), (96, 0), (96, 200)])
def test_many_tokens_of_16_bits(dtype, columns, group, monkeypatch):
    """Tiles in bfloat16, whose scales are rounded, too."""
    monkeypatch.setattr(byte_codes, "TILE", 50 * columns)
    layer = layer_of(130, columns, group=group).to(dtype)
    x = torch.randn(byte_codes.FEW_16 + 3, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    reference = expected(layer, x)
    assert (product(layer, x) - reference).norm() <= 1e-2 * reference.norm()


@needs_compiler
def test_the_input_is_divided_by_a_channel_scale():
    scale = (torch.rand(64) + 0.5).half()
    encoded = encode(torch.randn(70, 64), EncoderConfig(encoder="uniform", bits=8), scale)
    layer, x = KashinLinear.of(encoded), torch.randn(3, 64)
    torch.testing.assert_close(product(layer, x), expected(layer, x), rtol=1e-4, atol=1e-4)


@needs_compiler
def test_what_the_layer_holds_now_counts():
    """A new tensor, a value written into one, a copy: none computes with what was."""
    layer, other, x = layer_of(40, 64), layer_of(40, 64, group=32), torch.randn(1, 64)
    product(layer, x)
    layer.weight_codes = nn.Parameter((255 - layer.weight_codes), requires_grad=False)
    torch.testing.assert_close(product(layer, x), expected(layer, x), rtol=1e-4, atol=1e-4)
    layer.weight_scale.mul_(2)
    torch.testing.assert_close(product(layer, x), expected(layer, x), rtol=1e-4, atol=1e-4)
    for made in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        torch.testing.assert_close(product(made, x), expected(other, x), rtol=1e-4, atol=1e-4)


def test_gradients_many_tokens_and_other_levels_go_another_way(monkeypatch):
    layer = layer_of(40, 64, bias=False)
    assert layer.bytes is not None
    x = torch.randn(2, 64, requires_grad=True)
    assert layer.bytes(layer, x) is None
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0], layer.encoded().decode().sum(0), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        many = torch.randn(byte_codes.FEW + 1, 64)
        assert layer.bytes(layer, many) is None
        torch.testing.assert_close(layer(many).double(), expected(layer, many), rtol=1e-4, atol=1e-4)
        monkeypatch.setenv("KQUANT_BACKEND", "reference")
        assert layer.bytes(layer, many[:1]) is None
        torch.testing.assert_close(layer(many[:1]).double(), expected(layer, many[:1]), rtol=1e-4, atol=1e-4)
    assert layer_of(8, 16, levels=128).bytes is None  # seven codes in a word


def test_levels_that_are_not_evenly_spaced_go_another_way():
    layout = Layout((6, 8), 256, columns=1, scale=(6, 1))
    codes = torch.randint(256, (6, 8), dtype=torch.uint8)
    layer = KashinLinear.of(EncodedMatrix(layout, codes, torch.randn(256, 1), torch.ones(6, 1).half()))
    x = torch.randn(1, 8)
    assert layer.bytes is not None
    with torch.no_grad():
        assert layer.bytes(layer, x) is None
        torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-4, atol=1e-4)
