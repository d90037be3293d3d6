"""Codes in blocks, the products that look them up, and layers that are one call, against float64."""

from __future__ import annotations

import copy
import ctypes
import pickle
import subprocess
from typing import Any

import pytest
import torch
from formulas import COLUMNS, FORMULAS, FRAMES, PARTS, ROWS, random_matrix
from torch import Tensor, nn

from kquant_cli import native as compiling
from kquant_cli.bases import BasisSpec, CoupledBases
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.packing import pack, row_bytes
from kquant_cli.runtime import KashinLinear, blocks, cpu_layer, layer_loops
from kquant_cli.runtime.products import Packed, backend_for, lookup, reference
from kquant_cli.runtime.replace_layers import lay_out

pytestmark = pytest.mark.skipif(layer_loops.loops() is None, reason="needs a compiler")
CPU = torch.device("cpu")
LEVELS = range(2, 17)
SHAPES = [(64, 64), (130, 96), (7, 33), (200, 575), (9, 8), (192, 576)]
TOKENS = [1, 3, 4, 5, lookup.FEW, lookup.FEW + 1, 70]
TOLERANCE = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Some draws in ten thousand come near the tolerances."""
    torch.manual_seed(0)


def matrix(levels: int, rows: int, columns: int, book: int = 2) -> Packed:
    """Random codes in blocks."""
    generator = torch.Generator().manual_seed(levels)
    codes = pack(torch.randint(levels, (rows, columns), generator=generator).to(torch.uint8), levels)
    laid_out = blocks.to_blocks(codes, levels, columns)
    return Packed(codes, torch.randn(levels, book, generator=generator), columns, blocks=laid_out)


def off(found: Tensor, expected: Tensor) -> float:
    """Relative difference in the Frobenius norm."""
    return float((found.double() - expected).norm() / expected.norm())


def layer_of(levels: int, frame: Frame, rows: int = 200, columns: int = 96, **layout: Any) -> KashinLinear:
    """A layer in blocks, with a bias and, unless the layout says another, a scale of rows."""
    generator = torch.Generator().manual_seed(levels)
    made = Layout((rows, columns), levels, frame, **{"scale": (rows, 1), **layout})
    encoded = EncodedMatrix(
        made,
        torch.randint(levels, (rows, columns), generator=generator).to(torch.uint8),
        torch.randn(levels, made.columns, generator=generator) if made.grid is None else made.grid_codebook(CPU),
        torch.rand(made.scale, generator=generator).half() + 0.5 if made.scale else None,
        torch.rand(columns, generator=generator).half() + 0.5 if made.col_scale else None,
        torch.rand(columns, generator=generator).half() + 0.5 if made.channel_scale else None,
    )
    layer = KashinLinear.of(encoded, nn.Parameter(torch.randn(rows, generator=generator), requires_grad=False))
    layer.to_blocks()
    return layer


def coupled(columns: int) -> Frame:
    return Frame(
        right_u=BasisSpec("signed_hadamard_dct", columns, 3), right_v=BasisSpec("twice_signed_hadamard_dct", columns, 3)
    )


def output_side(rows: int, columns: int, right: bool = True) -> Frame:
    """Coupled bases of the output, and in the other direction one basis or none."""
    pair = CoupledBases(rows, 3)
    basis = BasisSpec("signed_hadamard_dct", columns, 4) if right else None
    return Frame(left_u=pair.first, left_v=pair.second, right_u=basis, right_v=basis)


def dense(layer: KashinLinear, x: Tensor) -> Tensor:
    """What the layer's weight and bias make of x, in float64."""
    return nn.functional.linear(x.double(), layer.encoded().decode(torch.float64), layer.bias.double())


@pytest.mark.parametrize("levels", LEVELS)
def test_there_and_back(levels: int) -> None:
    for rows, columns in SHAPES:
        packed = matrix(levels, rows, columns)
        assert torch.equal(blocks.to_rows(packed.blocks, rows, columns, levels), packed.codes)
        some = packed.unpacked(rows // 2, rows + 9)
        assert torch.equal(some, blocks.codes_of(packed.blocks, rows, columns, levels)[rows // 2 :])


@pytest.mark.parametrize("levels", [2, 4, 8, 16])
def test_whole_blocks_take_what_a_bundle_stores(levels: int) -> None:
    assert blocks.size(640, 512, levels) == 640 * row_bytes(512, levels)


@pytest.mark.parametrize("levels", LEVELS)
def test_products(levels: int) -> None:
    for rows, columns in SHAPES:
        packed = matrix(levels, rows, columns)
        for tokens in TOKENS:
            a, b = torch.randn(2, tokens, columns, generator=torch.Generator().manual_seed(1))
            assert backend_for(packed, a, False) == "lookup"
            both = reference.product(packed, a.double(), b.double(), True)
            for split in (False, True):
                found = lookup.product(packed, a, b, split)
                expected = both if split else (both[0] + both[1],)
                for mine, theirs in zip(found, expected, strict=False):
                    assert mine is not None
                    assert theirs is not None
                    assert off(mine, theirs) < 1e-4, (rows, columns, tokens, split)


def test_a_codebook_of_one_column() -> None:
    packed = matrix(16, 70, 40, book=1)
    for tokens in TOKENS:
        a = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(1))
        first, second = lookup.product(packed, a, None, False)
        assert second is None
        expected, _ = reference.product(packed, a.double(), None, False)
        assert off(first, expected) < TOLERANCE[torch.float32]


def test_numbers_that_are_none() -> None:
    packed = matrix(16, 70, 600)
    for wrong in (float("nan"), float("inf")):
        a = torch.zeros(1, 600)
        assert torch.equal(lookup.product(packed, a, a, False)[0], torch.zeros(1, 70))
        a[0, 590] = wrong
        assert not lookup.product(packed, a, a, False)[0].isfinite().any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("levels", [2, 3, 4, 8, 12, 16])
def test_layers(levels: int, dtype: torch.dtype) -> None:
    frames = {96: coupled(96), 40: coupled(40), 64: coupled(64), 1376: coupled(1376)}
    cases = [(frame, size, scaled) for size, frame in frames.items() for scaled in (False, True)]
    for frame, columns, scaled in [*cases, (Frame(), 70, False)]:
        layer = layer_of(levels, frame, columns=columns, channel_scale=scaled)
        assert layer.ready
        for tokens in (1, 4, 7, lookup.FEW + 2):
            x = torch.randn(2, tokens, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
            y = layer(x)
            assert (y.dtype, y.shape) == (dtype, (2, tokens, 200))
            many = 2 * tokens > lookup.FEW and dtype != torch.float32  # then bfloat16 is multiplied
            assert off(y, dense(layer, x)) < (TOLERANCE[torch.bfloat16] if many else TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("levels", [2, 3, 4, 6, 8, 12, 16])
def test_layers_of_the_output_side(levels: int, dtype: torch.dtype) -> None:
    cases: list[tuple[int, int, dict[str, Any]]] = [
        (576, 192, {"col_scale": True}),
        (192, 576, {"scale": None}),
        (100, 1536, {"col_scale": True, "channel_scale": True}),
        (1536, 100, {"col_scale": True}),
        (7, 40, {"col_scale": True, "scale": (1, 1)}),
    ]
    for rows, columns, parts in cases:
        for right, grid in ((True, f"ring-{levels}"), (True, None), (False, f"ring-{levels}")):
            layer = layer_of(levels, output_side(rows, columns, right), rows, columns, grid=grid, **parts)
            assert layer.ready
            for tokens in (1, 3, lookup.FEW, lookup.FEW + 1, 300):
                x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
                y = layer(x)
                assert (y.dtype, y.shape) == (dtype, (tokens, rows))
                many = tokens > lookup.FEW and dtype != torch.float32  # then bfloat16 is multiplied
                assert off(y, dense(layer, x)) < (TOLERANCE[torch.bfloat16] if many else TOLERANCE[dtype])


def test_numbers_that_are_none_on_the_output_side() -> None:
    for grid in ("ring-16", None):
        layer = layer_of(16, output_side(64, 600, right=False), 64, 600, grid=grid)
        x = torch.zeros(1, 600)
        assert torch.equal(layer(x)[0], layer.bias)
        for wrong in (float("nan"), float("inf")):
            x[0, 590] = wrong
            assert not layer(x).isfinite().any()


def test_columns_come_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layer, "PANELS", 1)
    for levels, columns in ((3, 192), (12, 200)):
        layer, x = layer_of(levels, output_side(40, columns), 40, columns, col_scale=True), torch.randn(30, columns)
        assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("rows", [575, 131])
def test_bases_that_are_not_fast_run_by_modules(rows: int) -> None:
    layer = layer_of(16, output_side(rows, 96), rows, col_scale=True)
    assert not layer.ready
    for tokens in (1, 30):
        x = torch.randn(tokens, 96)
        assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(("frame", "parts", "levels"), [case for case in FORMULAS if case[2] <= blocks.MOST_LEVELS])
def test_every_formula(frame: str, parts: str, levels: int) -> None:
    encoded = random_matrix(levels, frame=FRAMES[frame], **PARTS[parts])
    layer = KashinLinear.of(encoded)
    layer.to_blocks()
    assert layer.blocks is not None
    for tokens in (1, 40):
        x = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(1))
        expected = x.double() @ encoded.decode(torch.float64).T
        assert off(layer(x), expected) < TOLERANCE[torch.float32]
        torch.testing.assert_close(layer(x.double()), expected, rtol=1e-6, atol=1e-9)
        wanted = x.clone().requires_grad_()
        layer(wanted).sum().backward()
        torch.testing.assert_close(wanted.grad, encoded.decode().sum(0).expand(tokens, -1), rtol=1e-3, atol=1e-4)


def test_what_has_more_levels_or_scales_of_groups_stays_in_rows() -> None:
    for encoded in (random_matrix(17), random_matrix(16, columns=1, scale=(ROWS, 5), group=8)):
        layer = KashinLinear.of(encoded)
        layer.to_blocks()
        assert layer.blocks is None


def test_no_layout_where_another_backend_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KQUANT_BACKEND", "reference")
    assert layer_of(16, coupled(96)).blocks is None


def test_state_dicts_copies_and_moves_have_the_codes() -> None:
    layer = layer_of(16, coupled(96), channel_scale=True)
    x = torch.randn(2, 96)
    before, encoded = layer(x), layer.encoded()
    assert not layer.weight_codes.any()  # they are elsewhere
    stored = encoded.to_tensors()["weight_codes"]
    assert torch.equal(layer.state_dict()["weight_codes"], stored)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), before)
        assert torch.equal(twin.encoded().codes, encoded.codes)
    assert layer.to("meta").blocks is None
    layer = layer_of(16, coupled(96), channel_scale=True).to(torch.bfloat16)
    assert layer.blocks is not None
    assert torch.equal(layer.encoded().codes, encoded.codes)
    assert layer.to_rows()
    assert torch.equal(layer.weight_codes, stored)
    assert not layer.to_rows()


def test_a_layers_copy_has_blocks_of_its_own() -> None:
    model = nn.ModuleList([KashinLinear.of(random_matrix(16)) for _ in range(3)])
    lay_out(model)
    whole = model[1].blocks.untyped_storage()
    assert all(layer.blocks.untyped_storage().data_ptr() == whole.data_ptr() for layer in model)
    twin = copy.deepcopy(model[1])
    assert twin.blocks.untyped_storage().nbytes() == model[1].blocks.nbytes < whole.nbytes()
    assert torch.equal(twin.encoded().codes, model[1].encoded().codes)


def test_codes_come_to_a_device_that_the_layer_was_not_told_of() -> None:
    """As where accelerate's `dispatch_model` has moved the parameter: then it holds nothing."""
    layer = layer_of(16, coupled(96))
    stored = layer.state_dict()["weight_codes"]
    layer._bring_codes(torch.device("cpu"))
    assert layer.blocks is None
    assert torch.equal(layer.weight_codes, stored)
    assert not layer.ready
    x = torch.randn(2, 96)
    assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]
    moved = layer_of(16, coupled(96))
    with pytest.raises((RuntimeError, NotImplementedError)):  # nothing is computed there, but the codes had to come
        moved(torch.empty(1, 96, device="meta"))
    assert moved.blocks is None
    assert moved.weight_codes.is_meta


def test_a_state_dict_is_loaded() -> None:
    layer, other = layer_of(16, coupled(96)), layer_of(16, coupled(96))
    codes = other.encoded().codes.flip(0)
    state = {**other.state_dict(), "weight_codes": pack(codes, 16)}
    layer(torch.randn(1, 96))
    layer.load_state_dict(state)
    assert torch.equal(layer.encoded().codes, codes)
    x = torch.randn(3, 96)
    assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]


def test_a_parameter_that_is_replaced_or_changed_counts() -> None:
    layer, x = layer_of(16, coupled(96)), torch.randn(1, 96)
    before = layer(x)
    layer.bias.data.add_(1)
    torch.testing.assert_close(layer(x), before + 1, rtol=1e-4, atol=1e-4)
    layer.bias = nn.Parameter(layer.bias + 1, requires_grad=False)
    torch.testing.assert_close(layer(x), before + 2, rtol=1e-4, atol=1e-4)
    scaled = layer_of(16, output_side(200, 96), col_scale=True)
    scaled(x)
    scaled.weight_col_scale.data.mul_(3)
    assert off(scaled(x), dense(scaled, x)) < TOLERANCE[torch.float32]
    scaled.weight_col_scale = nn.Parameter(scaled.weight_col_scale.float() / 2, requires_grad=False)
    assert off(scaled(x), dense(scaled, x)) < TOLERANCE[torch.float32]
    layer.weight_codebook.data = layer.weight_codebook * 2
    torch.testing.assert_close(layer(x), 2 * (before - layer.bias + 2) + layer.bias, rtol=1e-3, atol=1e-3)
    assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]


def test_a_bias_that_is_trained_gets_its_gradient() -> None:
    layer = layer_of(16, coupled(96))
    layer.bias.requires_grad_()
    layer(torch.randn(5, 96)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((200,), 5.0))


def siblings(*levels: int, output: bool = False) -> list[KashinLinear]:
    """Layers that share an input, as q, k and v do."""
    made = []
    for number, rows in zip(levels, (128, 64, 70), strict=False):
        frame = output_side(rows, 96) if output else coupled(96)
        made.append(layer_of(number, frame, rows=rows, col_scale=output))
    for layer in made:
        layer.input_transform = made[0].input_transform
        layer.input_transform.layers.append(layer)
    made[0].input_transform.readers = len(made)
    return made


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of layers of the calls made, as they come."""
    counted: list[int] = []
    few = cpu_layer.CpuLayer.few
    monkeypatch.setattr(cpu_layer.CpuLayer, "few", lambda call, x: (counted.append(len(call.rows)), few(call, x))[1])
    return counted


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_layers_of_one_input_are_one_call(tokens: int, output: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, counted = siblings(16, 16, 4, output=output), calls(monkeypatch)
    layers[1].weight_codebook.data = layers[0].weight_codebook.clone()  # which then share their tables
    for turn in range(1, 3):
        x = torch.randn(tokens, 96)
        with torch.inference_mode():
            for layer in layers:
                assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]
        assert counted == [3] * turn


def test_layers_that_turn_out_to_read_several_inputs_are_called_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As q of a cross-attention, and k and v."""
    layers, counted = siblings(16, 16, 4), calls(monkeypatch)
    for _ in range(3):
        inputs = torch.randn(1, 96), torch.randn(1, 96)
        for layer, x in zip(layers, (inputs[0], inputs[1], inputs[1]), strict=True):
            assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]
    assert counted == [3, 1, 1, *[1] * 6]


@pytest.mark.parametrize("output", [False, True])
def test_many_tokens_share_their_coordinates(output: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, counted = siblings(16, 8, 4, output=output), []
    coordinates = cpu_layer.CpuLayer.coordinates
    monkeypatch.setattr(
        cpu_layer.CpuLayer, "coordinates", lambda call, x: (counted.append(len(x)), coordinates(call, x))[1]
    )
    x = torch.randn(50, 96)
    for layer in layers:
        assert off(layer(x), dense(layer, x)) < TOLERANCE[torch.float32]
    assert counted == [50]


@pytest.mark.parametrize("options", [("-march=x86-64-v3",), ("-march=x86-64-v2",), ("-march=x86-64",)])
def test_other_processors(options: tuple[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What is compiled for processors without AVX-512, without AVX2, and without shuffles: run here."""
    flags = compiling._processor()
    if "x86_64" not in flags or not {"avx2", "fma"} <= set(flags.split()):
        pytest.skip("needs an x86 with AVX2")
    monkeypatch.setattr(compiling, "TUNED", options)
    monkeypatch.setattr(compiling, "OPTIONS", ("-O1", *(o for o in compiling.OPTIONS if o != "-O3")))  # compiles faster
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = compiling.library.__wrapped__("layer")
    assert made is not None
    monkeypatch.setattr(layer_loops, "library", lambda name: made)
    layer_loops.loops.cache_clear()
    try:
        for levels in LEVELS:
            packed = matrix(levels, 130, 96)
            for tokens in (1, 5, 40):
                a, b = torch.randn(2, tokens, 96)
                expected, _ = reference.product(packed, a.double(), b.double(), False)
                assert off(lookup.product(packed, a, b, False)[0], expected) < TOLERANCE[torch.float32]
        made_layers = [layer_of(16, coupled(96), channel_scale=True)]
        for number in (4, 8, 16):  # of constant codebooks, which byte products would multiply
            made_layers.append(layer_of(number, output_side(200, 96), col_scale=True, grid=f"ring-{number}"))
        for layer in made_layers:
            for dtype, tolerance in TOLERANCE.items():
                for tokens, allowed in ((1, tolerance), (40, max(tolerance, TOLERANCE[torch.bfloat16]))):
                    x = torch.randn(tokens, 96).to(dtype)
                    assert off(layer(x), dense(layer, x)) < allowed
    finally:
        layer_loops.loops.cache_clear()


def test_half_precision_without_its_instructions(tmp_path: Any) -> None:
    """native/numbers.h turns every float16 into a float and back, and rounds as torch does."""
    source = tmp_path / "halves.cpp"
    source.write_text(
        f'#include "{compiling.SOURCES / "numbers.h"}"\n'
        'extern "C" void there(const unsigned short *h, float *f, long n, int dtype) {\n'
        "    for (long i = 0; i < n; i++) f[i] = number(h, dtype, i);\n}\n"
        'extern "C" void back(const float *f, unsigned short *h, long n, int dtype) {\n'
        "    for (long i = 0; i < n; i++) store(h, dtype, i, f[i]);\n}\n"
    )
    library = tmp_path / "halves.so"
    subprocess.run(["c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    made = ctypes.CDLL(str(library))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    made.there.argtypes = made.back.argtypes = [pointer, pointer, number, ctypes.c_int]
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    between = torch.cat([torch.randn(10**5) * scale for scale in (1e-8, 1e-6, 1e-4, 1.0, 1e4, 1e5)])
    for dtype, code in ((torch.float16, 2), (torch.bfloat16, 1)):
        found = torch.empty(2**16)
        made.there(every.data_ptr(), found.data_ptr(), 2**16, code)
        expected = every.view(dtype).float()
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
        back = torch.empty(len(between), dtype=torch.int16)
        made.back(between.data_ptr(), back.data_ptr(), len(between), code)
        assert torch.equal(back.view(dtype), between.to(dtype))
