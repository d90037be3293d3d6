"""Layers as torch.compile and torch.export see them: whole graphs, and the numbers of the layers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from formulas import COLUMNS, FORMULAS, FRAMES, PARTS, ROWS, random_matrix
from small_bundles import bundle_of, logits
from torch import nn

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.runtime import KashinLinear, load
from kquant_cli.runtime.operators import compiled_product


def arguments(layer: KashinLinear, x: torch.Tensor) -> tuple[Any, ...]:
    scale, col_scale = (getattr(layer, name, None) for name in ("weight_scale", "weight_col_scale"))
    grouped = scale if scale is not None and scale.shape[1] > 1 else None
    matrix = (layer.weight_codes, getattr(layer, "weight_codebook", None), grouped, col_scale)
    return x, *matrix, getattr(layer, "weight_channel_scale", None), layer.layout_key


@pytest.fixture
def compiled() -> Any:
    """compiled(module): in one graph, traced with gradients or without, and called as it was traced."""
    torch._dynamo.reset()
    yield lambda module, **how: torch.compile(module, fullgraph=True, **{"backend": "aot_eager", **how})
    torch._dynamo.reset()


@pytest.mark.parametrize(("frame", "parts", "levels"), FORMULAS)
def test_values_and_gradients_of_every_formula(frame: str, parts: str, levels: int) -> None:
    layer = KashinLinear.of(random_matrix(levels, frame=FRAMES[frame], **PARTS[parts]))
    x = torch.randn(2, 3, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = torch.randn(2, 3, ROWS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for function in (lambda x: compiled_product(*arguments(layer, x)), layer):
        given = x.clone().requires_grad_()
        y = function(given)
        if function is not layer and PARTS[parts].get("scale"):
            y = y * layer.weight_scale.T
        y.backward(g)
        results.append((y.detach(), given.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [{}, {"scale": (ROWS, 3), "group": 16, "columns": 1}, PARTS["all scales"]])
def test_torch_finds_the_operator_in_order(parts: dict[str, Any], dtype: torch.dtype) -> None:
    """Schema, shapes and dtypes without data, gradients, tracing with sizes that change."""
    layer = KashinLinear.of(random_matrix(5, frame=FRAMES["input side"], **parts))
    x = torch.randn(4, COLUMNS, dtype=dtype, requires_grad=True)
    torch.library.opcheck(compiled_product, arguments(layer, x))


def test_the_operator_has_constant_codebooks_itself() -> None:
    layer = KashinLinear.of(encode(torch.randn(ROWS, COLUMNS), EncoderConfig(bits=3)))
    x = torch.randn(4, COLUMNS, requires_grad=True)
    assert arguments(layer, x)[2] is None
    torch.library.opcheck(compiled_product, arguments(layer, x))
    scaled = compiled_product(*arguments(layer, x)) * layer.weight_scale.T
    torch.testing.assert_close(scaled, layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_in_one_graph(dtype: torch.dtype, compiled: Any) -> None:
    layer = KashinLinear.of(
        random_matrix(16, frame=FRAMES["all"], **PARTS["all scales"]), nn.Parameter(torch.randn(ROWS))
    )
    once = compiled(layer)
    for tokens in (1, 5, 7):
        x, same = (torch.randn(2, tokens, COLUMNS).to(dtype).requires_grad_() for _ in range(2))
        same.data.copy_(x.data)
        y = once(x)
        assert y.dtype == dtype
        assert torch.equal(y, layer(same))
        y.sum().backward()
        layer(same).sum().backward()
        torch.testing.assert_close(x.grad, same.grad)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_compiled_model_in_one_graph(mode: Any, compiled: Any, tmp_path: Path) -> None:
    model = load(bundle_of("llama", tmp_path, calibration="random"), dtype="float32")
    expected, once, tokens = logits(model), compiled(model), tiny_models.tokens()
    with mode():
        torch.testing.assert_close(once(tokens).logits.detach(), expected, rtol=1e-3, atol=1e-3)


def test_an_exported_layer() -> None:
    layer = KashinLinear.of(random_matrix(3, frame=FRAMES["paper"], **PARTS["all scales"]))
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(layer, (torch.randn(4, COLUMNS),), dynamic_shapes=({0: tokens},))
    assert "kquant.product" in str(program.graph)
    x = torch.randn(9, COLUMNS)
    torch.testing.assert_close(program.module()(x), layer(x))
