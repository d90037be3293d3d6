"""Layers with coupled bases on the output side, by CUDA kernels, emulated, and on a GPU where there is one."""

import logging
from dataclasses import replace

import pytest
import torch
from cuda_emulator import EmulatedLauncher, emulator, needs_emulator
from output_side import output_side

from kquant_cli.bases import BasisSpec
from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import Frame
from kquant_cli.encoders import encode
from kquant_cli.native.cuda_launch import launcher_for
from kquant_cli.runtime import KashinLinear
from kquant_cli.runtime.coupled_frame import CoupledFrame
from kquant_cli.runtime.products import Packed, cuda, trial
from kquant_cli.runtime.products.look_up import EIGHT, FOUR, SIXTEEN, SIXTEEN_PAIRED, TABLE

TOLERANCES = {torch.float16: 8e-4, torch.bfloat16: 4e-3}  # of results that are rounded
LAUNCHES = ["activations", "product", "outputs"]
gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or launcher_for(torch.device("cuda", 0)) is None, reason="needs a newer CUDA device"
)


@pytest.fixture
def library():
    return emulator()


@pytest.fixture
def launcher(library, monkeypatch):
    return EmulatedLauncher(library).install(monkeypatch)


def layer_of(matrix, dtype, bias=True):
    rows = matrix.layout.shape[0]
    added = torch.nn.Parameter(torch.linspace(-1, 1, rows).to(dtype), requires_grad=False) if bias else None
    return KashinLinear.of(matrix, added), matrix.decode(torch.float64)


def inputs(tokens, columns, dtype=torch.bfloat16):
    return torch.randn(1, tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def check(layer, weight, x):
    """The layer's y of x, against float64."""
    with torch.no_grad():
        y = layer(x)
    expected = x.double().cpu() @ weight.T + (0 if layer.bias is None else layer.bias.double().cpu())
    assert (y.shape, y.dtype) == (expected.shape, x.dtype)
    error = float((y.double().cpu() - expected).norm() / expected.norm())
    assert error < TOLERANCES[x.dtype], (layer.layout.levels, weight.shape, x.shape, error)
    return y


@needs_emulator
@pytest.mark.parametrize("levels", [4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_a_layer_takes_three_launches_after_a_trial(launcher, levels, tokens):
    """A right basis, no channel scale; sizes with a DCT and without; the same twice."""
    rows, columns, dtype = (256, 1408, torch.float16) if tokens == 1 else (96, 256, torch.bfloat16)
    layer, weight = layer_of(output_side(levels, rows, columns), dtype)
    x = inputs(tokens, columns, dtype)
    first = check(layer, weight, x)
    assert launcher.launched == LAUNCHES * 2
    launcher.launched.clear()
    assert torch.equal(check(layer, weight, x), first)
    assert launcher.launched == LAUNCHES


@needs_emulator
@pytest.mark.parametrize("levels", [2, 4, 8, 16, 32, 64, 128, 256])
def test_codebooks_that_are_stored(launcher, levels):
    """On no grid: by tables in shared memory, and activations in float16."""
    tokens = {4: 3, 16: 8, 256: 2}.get(levels, 1)
    for dtype in (torch.float16, torch.bfloat16)[: 2 if levels == 8 else 1]:
        layer, weight = layer_of(output_side(levels, 160, 256, stored=True), dtype)
        check(layer, weight, inputs(tokens, 256, dtype))
        assert launcher.launched == LAUNCHES * 2
        launcher.launched.clear()


@needs_emulator
@pytest.mark.parametrize(("kind", "levels"), [(SIXTEEN, 16), (SIXTEEN_PAIRED, 16), (FOUR, 4), (EIGHT, 8)])
def test_every_look_up_in_registers(launcher, kind, levels):
    matrix = output_side(levels, 96, 384, stored=True)
    book = torch.randint(-126, 127, (levels, 2), generator=torch.Generator().manual_seed(kind))
    book[0, 0] = 126
    if kind == SIXTEEN_PAIRED:
        book[8:, 0] = book[:8, 0]
        book[:, 1] //= 2
    matrix.codebook.copy_(book * 0.01)
    layer, weight = layer_of(matrix, torch.bfloat16)
    for tokens in (2, 5):
        check(layer, weight, inputs(tokens, 384))
    assert {key[3] for key in trial._verdicts} == {kind}
    assert all(trial._verdicts.values()) and kind < TABLE


@needs_emulator
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("row_scale", [True, False])
@pytest.mark.parametrize("channel_scale", [True, False])
def test_parts_that_may_be_missing(launcher, right, row_scale, channel_scale):
    matrix = output_side(16, 192, 224, right, row_scale, channel_scale)
    layer, weight = layer_of(matrix, torch.bfloat16, bias=right != row_scale)
    check(layer, weight, inputs(1, 224))
    assert launcher.launched == LAUNCHES * 2


@needs_emulator
def test_what_the_annealed_encoder_makes(launcher):
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    layer, decoded = layer_of(encode(weight, EncoderConfig(bits=3, side="output")), torch.float16)
    check(layer, decoded, inputs(1, 128, torch.float16))
    assert launcher.launched == LAUNCHES * 2


@needs_emulator
def test_one_scale_for_all_rows(launcher):
    matrix = output_side(8, 96, 256)
    one = replace(matrix, layout=replace(matrix.layout, scale=(1, 1)), scale=torch.tensor([[0.25]]))
    layer, weight = layer_of(one, torch.float16)
    check(layer, weight, inputs(3, 256, torch.float16))
    assert launcher.launched[-3:] == LAUNCHES


@needs_emulator
@pytest.mark.parametrize(("rows", "columns"), [(75, 256), (96, 250), (144, 256), (288, 48)])
def test_sizes_without_a_kernel_fall_back(launcher, rows, columns):
    """Odd, of too few blocks, or words that no copy begins at."""
    layer, weight = layer_of(output_side(16, rows, columns), torch.bfloat16)
    check(layer, weight, inputs(2, columns))
    assert launcher.launched == []


@needs_emulator
def test_how_the_work_is_cut_does_not_change_a_bit(library, monkeypatch):
    """Any number of multiprocessors, and activations that come in parts: sums of integers are exact."""
    layer, weight = layer_of(output_side(16, 160, 1408), torch.bfloat16)
    x, results = inputs(4, 1408), []
    for multiprocessors in (1, 2, 132):
        EmulatedLauncher(library, multiprocessors).install(monkeypatch)
        results.append(check(layer, weight, x))
    least = EmulatedLauncher(library, 3, shared=0).install(monkeypatch)
    found = cuda.look_up_of(Packed(layer.weight_codes, layer.codebook, 1408))
    while cuda.plan(160, 1408, found, 4, x.device, True) is None:
        least.shared += 1024
    assert cuda.plan(160, 1408, found, 4, x.device, True).parts > 1
    results.append(check(layer, weight, x))
    assert least.launched == LAUNCHES * 2
    assert all(torch.equal(result, results[0]) for result in results)


@needs_emulator
def test_layers_that_read_the_same_share_the_activations(launcher):
    """Those with a column scale of their own do not."""
    matrices = [output_side(16, rows, 256) for rows in (96, 160, 192)]
    for n, matrix in enumerate(matrices[:2]):
        matrices[n] = replace(matrix, layout=replace(matrix.layout, col_scale=False), col_scale=None)
    made = [layer_of(matrix, torch.bfloat16) for matrix in matrices]
    for layer, _ in made[1:]:
        layer.input_transform = made[0][0].input_transform
    made[0][0].input_transform.readers = 3
    x = inputs(1, 256)
    for _ in range(2):  # trials first
        launcher.launched.clear()
        for layer, weight in made:
            check(layer, weight, x)
    assert sorted(launcher.launched) == ["activations"] * 2 + ["outputs"] * 3 + ["product"] * 3


@needs_emulator
def test_what_is_no_number_is_not_lost_and_zeros_stay(launcher):
    layer, weight = layer_of(output_side(16, 96, 256), torch.bfloat16, bias=False)
    check(layer, weight, inputs(4, 256))
    x = inputs(4, 256)
    x[0, 0, 3], x[0, 1, 200], x[0, 2] = float("nan"), float("inf"), 0.0
    y = layer(x)[0]
    assert bool(y[:2].isnan().all())
    assert bool((y[2] == 0).all())
    assert bool(y[3].isfinite().all())


@needs_emulator
def test_a_transform_that_errs_is_switched_off_and_said_once(launcher, monkeypatch, caplog):
    real = cuda._transform_outputs

    def wrong(pair, sums, scale, bias, y):
        real(pair, sums, scale, bias, y)
        y *= 1.02

    monkeypatch.setattr(cuda, "_transform_outputs", wrong)
    layer, weight = layer_of(output_side(16, 96, 256), torch.bfloat16)
    with caplog.at_level(logging.WARNING, "kquant_cli"):
        for _ in range(3):
            check(layer, weight, inputs(1, 256))
    (record,) = caplog.records
    assert "outputs.cu" in record.message and "relative error is 2.0e-02" in record.message
    assert launcher.launched == LAUNCHES


@needs_emulator
def test_the_operator_of_compilers_does_the_same(launcher):
    matrix = output_side(8, 96, 256)
    layer, weight = layer_of(matrix, torch.bfloat16)
    x = inputs(2, 256)
    y = torch.ops.kquant.product(x, layer.weight_codes, None, None, layer.weight_col_scale, None, layer.layout_key)
    expected = x.double() @ weight.T
    assert float((y * layer.weight_scale.T - expected).norm() / expected.norm()) < 0.01
    assert launcher.launched[-3:] == LAUNCHES


def test_the_frames_that_there_are_kernels_for():
    matrix = output_side(16, 96, 256)
    frame = matrix.layout.frame
    left_u, left_v, right = frame.left_u, frame.left_v, frame.right_u
    found = CoupledFrame.of(frame)
    assert found is not None and (found.left.first, found.left.second, found.right.first) == (left_u, left_v, right)
    assert CoupledFrame.of(Frame(left_u=left_u, left_v=left_v)) == (found.left, None)
    other = BasisSpec("signed_hadamard_dct", 256, 9)
    for wrong in (
        Frame(),
        Frame(right_u=right, right_v=right),
        Frame(left_u=left_u, left_v=left_v, right_u=right),
        Frame(left_u=left_u, left_v=left_v, right_u=right, right_v=other),
        Frame(left_u=left_v, left_v=left_u, right_u=right, right_v=right),
        Frame(left_u=left_u, left_v=left_v, right_u=BasisSpec("qr", 256), right_v=BasisSpec("qr", 256)),
        Frame(left_u, right, left_v, BasisSpec("twice_signed_hadamard_dct", 256, 4)),
    ):
        assert CoupledFrame.of(wrong) is None


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("levels", [4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_on_a_gpu_a_layer_is_that_of_float64_and_is_captured(levels, tokens):
    for rows, columns, stored in ((160, 1408, False), (4096, 11008, False), (1024, 4096, True)):
        layer, weight = layer_of(output_side(levels, rows, columns, stored=stored), torch.bfloat16)
        layer, x = layer.cuda(), inputs(tokens, columns).cuda()
        first = check(layer, weight, x)
        assert trial.switched_off() == []
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            y = layer(x)
        graph.replay()
        assert torch.equal(y, first)
