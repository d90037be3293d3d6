"""Decoding against the formula written out with dense float64 matrices."""

import json
from dataclasses import replace

import pytest
import torch

from kquant_cli.bases import BasisSpec, basis_for, make_basis
from kquant_cli.codebooks.integer_grids import integer_grids
from kquant_cli.encoded import EncodedMatrix, Frame, Layout, UnknownGridError

ROWS, COLUMNS, LEVELS = 12, 20, 5


@pytest.fixture
def matrix() -> EncodedMatrix:
    """Every part there: four bases, a scale a row and group, column and channel scales."""
    draw = torch.Generator().manual_seed(0)
    layout = Layout(
        shape=(ROWS, COLUMNS),
        levels=LEVELS,
        frame=Frame(
            BasisSpec("qr", ROWS, 1),
            BasisSpec("signed_hadamard", COLUMNS, 2),
            BasisSpec("butterfly", ROWS, 3, {"count": 2}),
            BasisSpec("signed_dct", COLUMNS, 4),
        ),
        scale=(ROWS, 3),
        group=8,
        col_scale=True,
        channel_scale=True,
        transposed=True,
        dtype="float16",
    )
    return EncodedMatrix(
        layout,
        torch.randint(LEVELS, (ROWS, COLUMNS), generator=draw).to(torch.uint8),
        torch.randn(LEVELS, 2, generator=draw),
        scale=torch.rand(ROWS, 3, generator=draw) + 0.5,
        col_scale=torch.rand(COLUMNS, generator=draw) + 0.5,
        channel_scale=torch.rand(COLUMNS, generator=draw) + 0.5,
    )


def by_the_formula(m: EncodedMatrix) -> torch.Tensor:
    frame, codes = m.layout.frame, m.codes.long()
    weight = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for column, left, right in ((0, frame.left_u, frame.right_u), (1, frame.left_v, frame.right_v)):
        term = m.codebook.double()[codes, column] @ torch.diag(m.col_scale.double())
        weight += basis_for(left).dense() @ term @ basis_for(right).dense().T
    scale = torch.empty_like(weight)
    for j in range(COLUMNS):
        scale[:, j] = m.scale[:, j // 8].double()
    return scale * weight @ torch.diag(1 / m.channel_scale.double())


def test_decode_is_the_formula(matrix):
    expected = by_the_formula(matrix)
    assert torch.allclose(matrix.decode(torch.float64), expected, rtol=0, atol=1e-12)
    assert torch.allclose(matrix.decode(), expected.float(), rtol=0, atol=1e-5)
    assert matrix.decode(torch.float16).dtype == torch.float16


def test_paper_form(matrix):
    layout = replace(matrix.layout, frame=Frame(left_v=BasisSpec("dct", ROWS), right_v=BasisSpec("dct", COLUMNS)))
    layout = replace(layout, scale=(1, 1), group=0, col_scale=False, channel_scale=False)
    paper = EncodedMatrix(layout, matrix.codes, matrix.codebook, scale=torch.tensor([[3.0]]))
    u, v = (matrix.codebook.double()[matrix.codes.long(), k] for k in (0, 1))
    q1, q2 = make_basis("dct", ROWS).dense(), make_basis("dct", COLUMNS).dense()
    assert torch.allclose(paper.decode(torch.float64), 3 * (u + q1 @ v @ q2.T), atol=1e-12)


def test_tensors_and_layout_round_trip(matrix):
    layout = Layout.from_dict(json.loads(json.dumps(matrix.layout.to_dict())))
    assert layout == matrix.layout
    tensors = matrix.to_tensors()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == layout.tensor_shapes()
    again = EncodedMatrix.from_tensors(layout, tensors)
    assert torch.equal(again.decode(torch.float64), matrix.decode(torch.float64))


def test_stored_bits_are_counted(matrix):
    stored = sum(t.numel() * t.element_size() for t in matrix.to_tensors().values())
    assert matrix.bits_per_weight == 8 * stored / (ROWS * COLUMNS)


def test_damage_is_named(matrix):
    tensors = matrix.to_tensors()
    with pytest.raises(ValueError, match="weight_codebook: expected shape"):
        EncodedMatrix.from_tensors(matrix.layout, {**tensors, "weight_codebook": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match=r"weight_scale: .* found nothing"):
        EncodedMatrix.from_tensors(matrix.layout, {k: t for k, t in tensors.items() if k != "weight_scale"})


@pytest.fixture
def constant(matrix) -> EncodedMatrix:
    """The same with the constant codebook of five levels."""
    layout = replace(matrix.layout, grid="ring-5", exponent=-6)
    return replace(matrix, layout=layout, codebook=layout.grid_codebook(torch.device("cpu")))


def test_a_constant_codebook_is_named_and_not_stored(constant):
    layout = Layout.from_dict(json.loads(json.dumps(constant.layout.to_dict())))
    assert layout == constant.layout
    tensors = constant.to_tensors()
    assert "weight_codebook" not in tensors
    again = EncodedMatrix.from_tensors(layout, tensors)
    assert torch.equal(again.codebook, torch.tensor(integer_grids()["ring-5"]) / 2.0**13)
    assert torch.equal(again.decode(torch.float64), constant.decode(torch.float64))
    assert torch.allclose(again.decode(torch.float64), by_the_formula(constant), rtol=0, atol=1e-12)
    assert again.bits_per_weight == 8 * sum(t.nbytes for t in tensors.values()) / (ROWS * COLUMNS)


def test_a_constant_codebook_that_there_is_not_is_named(constant):
    with pytest.raises(UnknownGridError, match="the unknown constant codebook 'spiral-5'"):
        Layout.from_dict(constant.layout.to_dict() | {"grid": "spiral-5"})


@pytest.mark.parametrize(
    "values",
    [
        {"grid": 5},
        {"grid": ["ring-5"]},
        {"grid": "ring-6"},
        {"grid": "ring-5", "columns": 1},
        {"grid": "ring-5", "exponent": 128},
        {"grid": "ring-5", "exponent": -120},
        {"grid": "ring-5", "exponent": 0.0},
        {"exponent": -6},
        {"shape": [12]},
        {"shape": [12, 0]},
        {"shape": [12, 20.0]},
        {"shape": 12},
        {"levels": "16"},
        {"levels": 1},
        {"levels": 257},
        {"levels": True},
        {"columns": 3},
        {"group": -1},
        {"group": None},
        {"scale": [12]},
        {"scale": [12, 4]},
        {"scale": [12, 3.0]},
        {"col_scale": 1},
        {"transposed": "no"},
        {"dtype": "foo"},
        {"dtype": "int8"},
        {"dtype": ["float32"]},
        {"frame": {"left_u": {"kind": "dct", "size": COLUMNS}}},
        {"frame": {"right_v": {"kind": "dct", "size": ROWS}}},
        {"colour": 3},
    ],
)
def test_impossible_layouts_are_refused(matrix, values):
    with pytest.raises((TypeError, ValueError)):
        Layout.from_dict(matrix.layout.to_dict() | values)


@pytest.mark.parametrize("shape", [(2**31, 1), (1, 2**40), (2**40, 2**40)])
def test_a_shape_beyond_all_matrices_is_refused_with_the_limit(shape):
    with pytest.raises(ValueError, match=r"shape cannot be .*: at most 2147483647 each way"):
        Layout.from_dict({"shape": list(shape), "levels": 16})


def test_what_is_refused_is_shown_shortened():
    with pytest.raises(ValueError, match="shape cannot be") as refusal:
        Layout.from_dict({"shape": [1] * 100_000, "levels": 16})
    assert len(str(refusal.value)) < 100
