"""The student's layer and its gradients are those of the formula in float64; the loss is torch's KL divergence."""

import pytest
import torch
from torch import nn

from kquant_cli.bases import basis_for
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import Metric, encode, encode_in_metric
from kquant_cli.tuning import distillation
from kquant_cli.tuning.distillation import divergence
from kquant_cli.tuning.student import TunedLinear, can_be_tuned, right_basis

ROWS, COLUMNS = 24, 40


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(
    scope="module", params=[{"bits": 2}, {"levels": 6, "codebook": "product"}], ids=["grid", "own codebook"]
)
def encoded(request):
    x = normal(400, COLUMNS, seed=1)
    metric = Metric(x[:200].T @ x[:200], x[200:].T @ x[200:], normal(ROWS, seed=2).exp())
    config = EncoderConfig(effort="fast", **request.param)
    return encode_in_metric([normal(ROWS, COLUMNS)], [metric], config)[0]


def layer_of(encoded, bias=None, dtype=torch.float32):
    right = right_basis(encoded.layout.frame.right_u, COLUMNS, torch.device("cpu"), dtype)
    return TunedLinear(encoded, right, bias)


def formula(encoded, layer, scale, col_scale):
    """W^ in float64, with P and R rounded to 16 bits as the layer has them."""
    frame, book = encoded.layout.frame, encoded.codebook.double()
    a, b = (basis_for(spec).dense() for spec in (frame.left_u, frame.left_v))
    codes = encoded.codes.long()
    exact = a @ book[:, 0][codes] + b @ book[:, 1][codes]
    assert float((layer.held.double() - exact).norm()) < 5e-3 * float(exact.norm())
    right = basis_for(frame.right_u).dense()
    assert float((layer.right.double() - right).abs().max()) < 4e-3
    return (scale[:, None] * layer.held.double() * col_scale) @ layer.right.double().T


def test_it_begins_as_the_matrix_decodes(encoded):
    layer = layer_of(encoded)
    x = normal(7, COLUMNS, seed=3)
    expected = x @ encoded.decode().T
    assert float((layer(x) - expected).norm()) < 1e-2 * float(expected.norm())
    assert torch.equal(layer.scale, encoded.scale.float().squeeze(1))
    assert torch.equal(layer.col_scale, encoded.col_scale.float())


def test_forward_and_gradients_are_those_of_the_formula(encoded):
    bias = nn.Parameter(normal(ROWS, seed=4))
    layer = layer_of(encoded, bias)
    with torch.no_grad():
        layer.scale_change += 0.1 * normal(ROWS, seed=5)
        layer.col_scale_change += 0.1 * normal(COLUMNS, seed=6)
    x = normal(2, 5, COLUMNS, seed=7).requires_grad_()
    weights = normal(2, 5, ROWS, seed=8)
    y = layer(x)
    (y.sin() * weights).sum().backward()
    changes = [p.detach().double().requires_grad_() for p in (layer.scale_change, layer.col_scale_change, bias, x)]
    scale, col_scale = encoded.scale.double().squeeze(1) * changes[0], encoded.col_scale.double() * changes[1]
    expected = changes[3] @ formula(encoded, layer, scale, col_scale).T + changes[2]
    (expected.sin() * weights).sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    for found, reference in zip((layer.scale_change, layer.col_scale_change, bias, x), changes, strict=True):
        assert float((found.grad.double() - reference.grad).norm()) < 1e-4 * float(reference.grad.norm())


def test_in_bfloat16_they_are_near(encoded):
    layer, x = layer_of(encoded, nn.Parameter(normal(ROWS, seed=4))), normal(9, COLUMNS, seed=7)
    exact = layer(x)
    exact.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer = layer_of(encoded, nn.Parameter(normal(ROWS, seed=4)), torch.bfloat16)
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert float((y - exact).norm()) < 2e-2 * float(exact.norm())
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert float((parameter.grad - gradient).norm()) < 5e-2 * float(gradient.norm())


def test_only_matrices_with_both_scales_can_be_tuned(encoded):
    assert can_be_tuned(encoded)
    weight = normal(ROWS, COLUMNS)
    for settings in (
        {"side": "input"},
        {"side": "output"},
        {"encoder": "uniform"},
        {"encoder": "kmeans", "restarts": 1},
    ):
        assert not can_be_tuned(encode(weight, EncoderConfig(**settings)))


@pytest.mark.parametrize("entries", [1, 90, 1 << 22])
def test_the_divergence_is_torchs(entries, monkeypatch):
    monkeypatch.setattr(distillation, "ENTRIES", entries)
    student, teacher = (3 * normal(2, 5, 30, seed=seed) for seed in (0, 1))
    found, expected = student.clone().requires_grad_(), student.double().requires_grad_()
    value = divergence(found, teacher)
    (value / 7).backward()
    q, p = (part.log_softmax(dim=-1) for part in (expected, teacher.double()))
    reference = nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    (reference / 7).backward()
    assert float(value) == pytest.approx(float(reference), rel=1e-5)
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-6)
    assert float(divergence(student, student)) == pytest.approx(0, abs=1e-4)


def test_the_divergence_in_bfloat16():
    student, teacher = (3 * normal(8, 30, seed=seed) for seed in (0, 1))
    half = student.to(torch.bfloat16).requires_grad_()
    value = divergence(half, teacher.to(torch.bfloat16))
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    q, p = half.detach().double().log_softmax(-1), teacher.to(torch.bfloat16).double().log_softmax(-1)
    expected = nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    assert float((half.grad.double() - (q.exp() - p.exp())).abs().max()) < 5e-3
