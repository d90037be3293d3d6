"""Whole layers by CUDA kernels, emulated: what is launched, what is shared, and what happens where a kernel errs."""

import logging

import pytest
import torch
from cuda_emulator import EmulatedLauncher, emulator, needs_emulator

from kquant_cli.bases import BasisSpec
from kquant_cli.bases.coupled import KINDS
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.runtime import KashinLinear, input_transform
from kquant_cli.runtime.device_product import device_product
from kquant_cli.runtime.products import Packed, cuda, trial

pytestmark = needs_emulator
COLUMNS = 256


@pytest.fixture
def library():
    return emulator()


@pytest.fixture
def launcher(library, monkeypatch):
    return EmulatedLauncher(library).install(monkeypatch)


def make_layer(levels=16, rows=24, col_scale=None):
    """A layer whose codebook is on a grid, and its weight in float64."""
    draw = torch.Generator().manual_seed(levels + rows)
    frame = Frame(right_u=BasisSpec(KINDS[0], COLUMNS, 3), right_v=BasisSpec(KINDS[1], COLUMNS, 3))
    layout = Layout(
        (rows, COLUMNS), levels, frame, scale=(rows, 1), col_scale=col_scale is not None, channel_scale=True
    )
    codes = torch.randint(levels, layout.shape, generator=draw, dtype=torch.uint8)
    book = torch.randint(-126, 127, (levels, 2), generator=draw) * 0.01
    scale, channel_scale = torch.rand(rows, 1, generator=draw) + 0.5, torch.linspace(0.5, 2, COLUMNS)
    encoded = EncodedMatrix(layout, codes, book, scale.half(), col_scale, channel_scale.half())
    bias = torch.nn.Parameter(torch.linspace(-1, 1, rows).bfloat16(), requires_grad=False)
    return KashinLinear.of(encoded, bias), encoded.decode(torch.float64)


def inputs(tokens):
    return torch.randn(1, tokens, COLUMNS, generator=torch.Generator().manual_seed(tokens)).bfloat16()


def is_close(y, x, layer, weight):
    expected = x.double() @ weight.T + layer.bias.double()
    assert (y.shape, y.dtype) == (expected.shape, torch.bfloat16)
    return float((y.double() - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("levels", [4, 8, 16, 32])
def test_a_layer_takes_two_launches_after_a_trial(launcher, levels):
    layer, weight = make_layer(levels)
    for tokens in (1, 3, 8):
        x = inputs(tokens)
        assert is_close(layer(x), x, layer, weight)
        assert launcher.launched == ["activations", "product"] * 2
        launcher.launched.clear()
        layer(x)
        assert launcher.launched == ["activations", "product"]
        launcher.launched.clear()
    assert is_close(layer(inputs(9)), inputs(9), layer, weight)
    assert launcher.launched == []


def test_the_operator_of_compilers_does_the_same(launcher):
    layer, weight = make_layer()
    x = inputs(2)
    arguments = (x, layer.weight_codes, layer.weight_codebook, None, None, layer.weight_channel_scale, layer.layout_key)
    y = torch.ops.kquant.product(*arguments) * layer.weight_scale.T + layer.bias
    assert is_close(y.bfloat16(), x, layer, weight)
    assert launcher.launched[-1] == "product"


def test_a_column_scale_is_the_layers_own(launcher):
    """Layers that share an input do not share activations that are scaled by it."""
    layers = [make_layer(col_scale=torch.linspace(low, 2, COLUMNS).half()) for low in (0.2, 3.0)]
    layers[1][0].input_transform = layers[0][0].input_transform
    layers[0][0].input_transform.readers = 2
    x = inputs(3)
    for layer, weight in layers:
        assert is_close(layer(x), x, layer, weight)
    assert launcher.launched == ["activations", "product"] * 3  # of which one is a trial


def test_layers_that_read_the_same_share_the_activations_of_a_form(launcher):
    """Two of 16 levels and one of 8: the transform runs once for each."""
    layers = [make_layer(levels, rows) for levels, rows in ((16, 24), (8, 40), (16, 33))]
    for layer, _ in layers[1:]:
        layer.input_transform = layers[0][0].input_transform
    layers[0][0].input_transform.readers = 3
    x = inputs(1)
    for layer, weight in layers:  # trials
        assert is_close(layer(x), x, layer, weight)
    launcher.launched.clear()
    for layer, weight in layers:
        assert is_close(layer(x), x, layer, weight)
    assert sorted(launcher.launched) == ["activations"] * 2 + ["product"] * 3
    assert layers[0][0].input_transform._kept is None


def test_what_is_no_power_of_two_has_its_transform_in_one_launch(launcher, monkeypatch):
    """On a GPU a layer computes in x's dtype; here it is told to."""
    monkeypatch.setattr(input_transform, "computed_dtype", lambda x: x.dtype)
    layer, weight = make_layer(levels=12)
    assert is_close(layer(inputs(2)), inputs(2), layer, weight)
    assert launcher.launched == ["activations"] * 2  # a trial first
    launcher.launched.clear()
    for tokens in (3, 20, cuda.FLOAT_TOKENS):
        layer(inputs(tokens))
    assert launcher.launched == ["activations"] * 3
    layer(inputs(cuda.FLOAT_TOKENS + 1))
    assert len(launcher.launched) == 3


@pytest.mark.parametrize("asked", ["triton", "reference"])
def test_the_kernels_can_be_done_without(launcher, monkeypatch, asked):
    layer, weight = make_layer()
    monkeypatch.setenv("KQUANT_BACKEND", asked)
    assert is_close(layer(inputs(1)), inputs(1), layer, weight)
    assert launcher.launched == []


def test_gradients_take_the_other_way(launcher):
    layer, weight = make_layer()
    x = inputs(2).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert launcher.launched == []
    expected = weight.sum(0).expand(x.shape)
    assert float((x.grad.double() - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_a_kernel_that_errs_is_switched_off_and_said_once(launcher, monkeypatch, caplog, fault):
    """Its results are the other way's."""
    real = cuda.product

    def product(*arguments):
        if fault == "broken":
            raise RuntimeError("product: an illegal instruction was encountered")
        return real(*arguments) * 1.02

    monkeypatch.setattr(cuda, "product", product)
    layer, weight = make_layer()
    with caplog.at_level(logging.WARNING, "kquant_cli"):
        for _ in range(3):
            assert is_close(layer(inputs(1)), inputs(1), layer, weight)
    (record,) = caplog.records
    assert "product.cu" in record.message
    assert ("illegal instruction" if fault == "broken" else "relative error is 2.0e-02") in record.message
    (off,) = trial.switched_off()
    assert off.startswith("product.cu cpu 16 ")


def test_nothing_is_tried_while_a_graph_is_captured(launcher, monkeypatch):
    """What was tried before is used."""
    capturing = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    layer, weight = make_layer()
    capturing.append(True)
    assert is_close(layer(inputs(1)), inputs(1), layer, weight)
    assert (launcher.launched, trial._verdicts) == ([], {})
    capturing.clear()
    layer(inputs(1))
    launcher.launched.clear()
    capturing.append(True)
    assert is_close(layer(inputs(1)), inputs(1), layer, weight)
    assert launcher.launched == ["activations", "product"]


def test_a_codebook_that_is_written_to_is_read_again(launcher):
    layer, weight = make_layer()
    x = inputs(1)
    layer(x)
    with torch.no_grad():
        layer.weight_codebook.mul_(2)
    expected = 2 * weight
    assert is_close(layer(x), x, layer, expected)
    with torch.no_grad():
        layer.weight_codebook.fill_(float("nan"))
    launcher.launched.clear()
    assert bool(layer(x).isnan().all())
    assert launcher.launched == []


def test_codes_on_another_device_are_not_for_the_kernels(launcher):
    layer, _ = make_layer()
    packed = Packed(layer.weight_codes.to("meta"), layer.weight_codebook, COLUMNS)
    assert device_product(layer.layout, packed, inputs(1), None, None, layer.input_transform, layer) is None
    assert launcher.launched == []


def test_a_device_with_too_little_shared_memory_has_no_plan(library, monkeypatch):
    launcher = EmulatedLauncher(library, shared=99 * 1024).install(monkeypatch)
    layer, weight = make_layer()
    assert is_close(layer(inputs(1)), inputs(1), layer, weight)
    assert launcher.launched == []
