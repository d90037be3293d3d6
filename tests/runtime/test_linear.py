"""KashinLinear against the dense weight that its codes stand for, in float64."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from formulas import COLUMNS, FORMULAS, FRAMES, PARTS, ROWS, random_matrix, spec
from torch import nn

from kquant_cli.bases import BasisSpec
from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.encoders import ENCODERS, encode
from kquant_cli.errors import KQuantError
from kquant_cli.runtime import KashinLinear


@pytest.mark.parametrize(("frame", "parts", "levels"), FORMULAS)
def test_every_formula(frame: str, parts: str, levels: int) -> None:
    encoded = random_matrix(levels, frame=FRAMES[frame], **PARTS[parts])
    layer = KashinLinear.of(encoded, nn.Parameter(torch.randn(ROWS)))
    x = torch.randn(2, 3, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = nn.functional.linear(x, encoded.decode(torch.float64), layer.bias.double())
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-9)
    found = layer(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        assert layer(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("group", [8, 16, 40])
def test_scales_of_groups(group: int) -> None:
    encoded = random_matrix(16, columns=1, scale=(ROWS, -(-COLUMNS // group)), group=group)
    x = torch.randn(5, COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(KashinLinear.of(encoded)(x), x @ encoded.decode(torch.float64).T)


def test_one_token_and_none() -> None:
    layer = KashinLinear.of(random_matrix(16, frame=FRAMES["input side"]))
    assert layer(torch.randn(COLUMNS)).shape == (ROWS,)
    assert layer(torch.randn(0, COLUMNS)).shape == (0, ROWS)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_encoders_make(encoder: str) -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(5))
    encoded = encode(weight, EncoderConfig(encoder=encoder, bits=4))
    x = torch.randn(4, COLUMNS)
    torch.testing.assert_close(KashinLinear.of(encoded)(x), x @ encoded.decode().T, rtol=1e-4, atol=1e-4)


def test_codes_and_codebooks_keep_their_dtypes() -> None:
    encoded = random_matrix(16, frame=FRAMES["input side"], scale=(ROWS, 1), channel_scale=True)
    layer = KashinLinear.of(encoded, nn.Parameter(torch.zeros(ROWS))).to(torch.bfloat16)
    assert layer.weight_codebook.dtype == torch.float32
    assert torch.equal(layer.weight_codebook, encoded.codebook)
    assert layer.weight_scale.dtype == torch.float16
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16


def test_a_constant_codebook_is_no_part_of_the_layer() -> None:
    """Not in its state, not cast, not moved: it is where the codes are, and the same for all layers."""
    first, second = (encode(0.01 * torch.randn(ROWS, COLUMNS), EncoderConfig(bits=3)) for _ in range(2))
    assert first.layout.exponent == second.layout.exponent != 0
    layer, other = KashinLinear.of(first), KashinLinear.of(second)
    assert set(layer.state_dict()) == {"weight_codes", "weight_scale"}
    assert layer.codebook is other.codebook
    assert layer.to(torch.bfloat16).codebook is other.codebook
    assert torch.equal(layer.codebook, first.codebook)
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), KashinLinear.of(layer.encoded())):
        assert made.codebook is other.codebook
    assert layer.to("meta").codebook.device.type == "meta"


def test_a_shared_channel_scale_moves_with_its_readers() -> None:
    encoded = random_matrix(16, frame=FRAMES["input side"], channel_scale=True, channel_scale_from="owner")
    layer = KashinLinear.of(encoded)
    scale = layer.channel_scale[0]
    assert layer.to(torch.float16).channel_scale[0] is scale
    assert layer.to("meta").channel_scale[0] is scale
    if torch.cuda.is_available():
        moved = KashinLinear.of(encoded).to("cuda")
        assert moved.channel_scale[0].device == moved.weight_codes.device


def test_the_dense_weight_is_described_and_decoded_only_for_who_computes_with_it() -> None:
    encoded = random_matrix(16, transposed=True)
    layer = KashinLinear.of(encoded, nn.Parameter(torch.zeros(ROWS, dtype=torch.float16)))
    weight: Any = layer.weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((COLUMNS, ROWS), torch.float16, "cpu")
    assert (weight.dim(), len(weight), weight.is_floating_point(), weight.data.requires_grad) == (
        2,
        COLUMNS,
        True,
        False,
    )
    assert weight.decoded is None
    expected = encoded.decode(torch.float16)
    assert torch.equal(torch.eye(COLUMNS, dtype=torch.float16) @ weight, expected.T)
    assert torch.equal(weight.T, expected)
    assert torch.equal(weight.detach().float(), expected.T.float())
    assert "in_features=40, out_features=24, levels=16, bias=True" in repr(layer)


@pytest.mark.parametrize(
    "write", [lambda w: w.zero_(), lambda w: setattr(w, "data", w + 1), lambda w: w.__setitem__(0, 1), nn.init.ones_]
)
def test_an_encoded_weight_is_not_written_to(write: Any) -> None:
    """What was written would be lost, silently."""
    with pytest.raises(KQuantError, match="writes to the weight of an encoded matrix; decode it with"):
        write(KashinLinear.of(random_matrix(16)).weight)


def test_the_dtype_of_a_dense_weight_follows_the_model() -> None:
    layer = KashinLinear.of(random_matrix(16))
    assert (layer.weight.dtype, layer.to(torch.bfloat16).weight.dtype) == (torch.float32, torch.bfloat16)
    assert layer.to("meta").weight.dtype == torch.bfloat16


@pytest.mark.parametrize("frame", ["none", "paper", "input side"])
def test_gradients_reach_the_input(frame: str) -> None:
    encoded = random_matrix(5, frame=FRAMES[frame], channel_scale=True)
    layer = KashinLinear.of(encoded)
    x = torch.randn(3, COLUMNS, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, ROWS, dtype=torch.float64)
    (layer(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ encoded.decode(torch.float64))
    assert all(parameter.grad is None for parameter in layer.parameters())
    narrow = x.detach().float().requires_grad_()
    (layer(narrow) * weights.float()).sum().backward()  # by the compiled loops, where there is a compiler
    torch.testing.assert_close(narrow.grad, x.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.fixture
def siblings() -> tuple[KashinLinear, KashinLinear]:
    """Two layers that share an input's coordinates, as q and k do."""
    first, second = (KashinLinear.of(random_matrix(levels, frame=FRAMES["input side"])) for levels in (4, 16))
    first.input_transform.readers = 2
    second.input_transform = first.input_transform
    return first, second


def count(monkeypatch: pytest.MonkeyPatch, layer: KashinLinear) -> list[int]:
    """The number of changes of coordinates, as it grows."""
    calls = [0]
    compute = layer.input_transform._compute

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return compute(*args)

    monkeypatch.setattr(layer.input_transform, "_compute", counted)
    return calls


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_siblings_compute_the_coordinates_once(monkeypatch: pytest.MonkeyPatch, siblings: Any, mode: Any) -> None:
    calls = count(monkeypatch, siblings[0])
    with mode():
        for repeat in range(1, 4):
            x = torch.randn(3, COLUMNS)
            for layer in siblings:
                torch.testing.assert_close(layer(x), x @ layer.encoded().decode().T, rtol=1e-4, atol=1e-4)
            assert calls == [repeat]
    assert siblings[0].input_transform._kept is None  # nothing stays once all have read


def test_another_or_a_changed_input_is_not_taken_for_the_first(siblings: Any) -> None:
    first, second = siblings
    x = torch.randn(3, COLUMNS)
    first(x)
    x += 1
    torch.testing.assert_close(second(x), x @ second.encoded().decode().T, rtol=1e-4, atol=1e-4)
    first(x)
    y = torch.randn(3, COLUMNS)
    torch.testing.assert_close(second(y), y @ second.encoded().decode().T, rtol=1e-4, atol=1e-4)


def test_an_input_that_changed_in_inference_mode_is_read_anew(siblings: Any) -> None:
    first, _ = siblings
    with torch.inference_mode():
        x = torch.randn(3, COLUMNS)
        first(x)
        x *= 2  # a tensor of this mode has no counter of what was written to it
        torch.testing.assert_close(first(x), x @ first.encoded().decode().T, rtol=1e-4, atol=1e-4)


def test_siblings_go_backward_one_after_the_other(siblings: Any) -> None:
    x = torch.randn(3, COLUMNS, requires_grad=True)
    for layer in siblings:
        layer(x).sum().backward()
    expected = sum(layer.encoded().decode().sum(0) for layer in siblings)
    torch.testing.assert_close(x.grad, expected.expand(3, -1), rtol=1e-4, atol=1e-4)


def test_coordinates_go_with_their_input(siblings: Any) -> None:
    x = torch.randn(3, COLUMNS)
    siblings[0](x)
    assert siblings[0].input_transform._kept is not None
    del x
    gc.collect()
    assert siblings[0].input_transform._kept is None


def test_bases_are_made_once_for_any_number_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("signed_hadamard_dct", "twice_signed_hadamard_dct", "qr")
    layers = []
    for columns in (40, 48, 56, 64, 72):  # more bases than are kept with nobody using them
        right_u, right_v, left_v = (spec(kind, columns) for kind in kinds)
        layout = Layout((columns, columns), 4, frame=Frame(left_v=left_v, right_u=right_u, right_v=right_v))
        codes = torch.randint(4, (columns, columns), dtype=torch.uint8)
        layers.append(KashinLinear.of(EncodedMatrix(layout, codes, torch.randn(4, 2), None, None, None)))
    inputs = [torch.randn(20, layer.in_features) for layer in layers]  # too many tokens for the compiled transforms
    expected = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    gc.collect()

    def unexpected(self: BasisSpec) -> Any:
        raise AssertionError(f"{self} is made again")

    monkeypatch.setattr("kquant_cli.runtime.basis_cache.basis_for", unexpected)
    for layer, x, y in zip(layers, inputs, expected, strict=True):
        assert torch.equal(layer(x), y)


def test_layers_are_copied_and_pickled(siblings: Any) -> None:
    x = torch.randn(3, COLUMNS)
    expected = siblings[0](x)
    for made in (copy.deepcopy(siblings), pickle.loads(pickle.dumps(siblings))):
        assert made[0].input_transform is made[1].input_transform
        assert made[0].input_transform._kept is None
        torch.testing.assert_close(made[0](x), expected)
