"""The matrix form: closed forms, stops, precision."""

import math

import pytest
import torch

from kquant_cli.bases import Basis, DenseBasis, make_basis
from kquant_cli.decomposition import KashinFactors, decompose_matrix
from kquant_cli.errors import KQuantError


def remainder(weight: torch.Tensor, factors: KashinFactors, left: Basis, right: Basis) -> torch.Tensor:
    """weight - u - left v right^T in float64, with dense matrices."""
    return weight.double() - factors.u.double() - left.dense() @ factors.v.double() @ right.dense().T


def outlier_weight(rows: int, columns: int) -> torch.Tensor:
    """Loud columns on a low-rank ground: converges slowly, as some real layers do."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, 3, generator=generator) @ torch.randn(3, columns, generator=generator)
    weight += 0.1 * torch.randn(rows, columns, generator=generator)
    weight[:, ::29] *= 12
    return weight


@pytest.mark.parametrize("rule", ["greedy", "alternating"])
def test_signs_times_a_constant_take_one_step(rule: str) -> None:
    signs = torch.randn(16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sign()
    left, right = make_basis("qr", 16), make_basis("qr", 24)
    factors = decompose_matrix(-0.3 * signs, left, right, max_iter=50, tol=1e-9, rule=rule)
    assert factors.converged
    assert factors.iterations == 1
    assert not factors.into_v[0]
    assert factors.coefficients[0] == pytest.approx(0.3)
    torch.testing.assert_close(factors.u, -0.3 * signs)
    assert not factors.v.any()


def test_signs_in_the_other_basis_take_one_step_into_v() -> None:
    signs = torch.randn(16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sign()
    left, right = make_basis("qr", 16), make_basis("qr", 24)
    weight = left.apply(right.apply(2.0 * signs, dim=1), dim=0)
    factors = decompose_matrix(weight, left, right, max_iter=50, tol=1e-9)
    assert factors.iterations == 1
    assert factors.into_v[0]
    torch.testing.assert_close(factors.v, 2.0 * signs)


def test_zeros_have_no_sign() -> None:
    """|S|^2 counts the entries that are not zero: with it one step is enough, with the number of entries it is not."""
    weight = torch.zeros(8, 8, dtype=torch.float64)
    weight[:3] = 5.0
    factors = decompose_matrix(weight, make_basis("identity", 8), make_basis("identity", 8), max_iter=9, tol=1e-9)
    assert factors.iterations == 1
    assert float(factors.coefficients[0]) == pytest.approx(5.0)


def test_gaussian_data_contract_by_the_closed_form() -> None:
    """A sign step takes 2/pi of the energy of Gaussian entries away."""
    weight = torch.randn(384, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    factors = decompose_matrix(weight, make_basis("qr", 384), make_basis("qr", 512), max_iter=7, tol=0)
    rate = math.sqrt(1 - 2 / math.pi)
    assert float(factors.residuals[0]) == pytest.approx(rate, rel=0.002)
    assert (factors.residuals[1:] / factors.residuals[:-1]).tolist() == pytest.approx([rate] * 6, rel=0.03)


@pytest.mark.parametrize(
    ("kinds", "shape"),
    [(("qr", "dct"), (40, 72)), (("identity", "butterfly"), (33, 50)), (("hadamard", "identity"), (64, 7))],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_parts_and_the_residual_are_the_weight(
    kinds: tuple[str, str], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    left, right = make_basis(kinds[0], shape[0]), make_basis(kinds[1], shape[1], seed=3)
    factors = decompose_matrix(weight, left, right, max_iter=12, tol=0)
    assert factors.u.dtype == factors.v.dtype == dtype
    relative = float(remainder(weight, factors, left, right).norm() / weight.double().norm())
    assert float(factors.residuals[-1]) == pytest.approx(relative, rel=1e-9 if dtype == torch.float64 else 1e-3)
    assert len(factors.residuals) == len(factors.coefficients) == len(factors.into_v) == factors.iterations == 12
    assert not factors.converged


def test_stops_at_the_first_residual_below_the_tolerance() -> None:
    weight = torch.randn(48, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left, right = make_basis("dct", 48), make_basis("dct", 80)
    factors = decompose_matrix(weight, left, right, max_iter=200, tol=1e-4)
    assert factors.converged
    assert float(factors.residuals[-1]) < 1e-4 <= float(factors.residuals[-2])
    cut = decompose_matrix(weight, left, right, max_iter=factors.iterations - 1, tol=1e-4)
    assert not cut.converged
    assert cut.iterations == factors.iterations - 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("rule", ["greedy", "alternating"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_number_of_queued_steps_changes_nothing(rule: str, dtype: torch.dtype) -> None:
    """What runs on a GPU, guesses and masks included, against one step at a time."""
    weight = outlier_weight(40, 58).to(dtype)
    left, right = make_basis("qr", 40), make_basis("qr", 58)
    single = decompose_matrix(weight, left, right, max_iter=400, tol=1e-3, rule=rule, batch=1)
    queued = decompose_matrix(weight, left, right, max_iter=400, tol=1e-3, rule=rule, batch=16)
    assert single.converged
    assert single.iterations > 40
    for name in ("u", "v", "residuals", "coefficients", "into_v"):
        assert torch.equal(getattr(single, name), getattr(queued, name)), name


def test_alternating_takes_two_steps_each() -> None:
    weight = outlier_weight(24, 40)
    factors = decompose_matrix(
        weight, make_basis("dct", 24), make_basis("dct", 40), max_iter=9, tol=0, rule="alternating"
    )
    assert factors.into_v.tolist() == [False, False, True, True, False, False, True, True, False]


@pytest.mark.parametrize("tol", [0.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_matrix_is_done_at_once(tol: float, dtype: torch.dtype) -> None:
    left, right = make_basis("dct", 4), make_basis("dct", 6)
    factors = decompose_matrix(torch.zeros(4, 6, dtype=dtype), left, right, max_iter=10, tol=tol)
    assert factors.converged
    assert factors.iterations == 0
    assert not factors.u.any()
    assert not factors.v.any()
    assert factors.residuals.shape == factors.coefficients.shape == factors.into_v.shape == (0,)


def test_a_residual_of_exact_zero_goes_on_without_nan() -> None:
    """Signs times a power of two: the first step leaves nothing, and tol = 0 asks for four more."""
    weight = torch.full((4, 4), 0.5)
    weight[0] = -0.5
    identity = make_basis("identity", 4)
    factors = decompose_matrix(weight, identity, identity, max_iter=5, tol=0)
    assert factors.iterations == 5
    assert factors.residuals.tolist() == [0.0] * 5
    assert torch.equal(factors.u + factors.v, weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(4)).to(dtype)
    left, right = make_basis("dct", 32), make_basis("dct", 48)
    factors = decompose_matrix(weight, left, right, max_iter=100, tol=1e-5)
    same = decompose_matrix(weight.float(), left, right, max_iter=100, tol=1e-5)
    assert factors.converged
    assert torch.equal(factors.u, same.u)


@pytest.mark.parametrize("power", [-110, 100])
def test_any_scale_gives_the_same_digits(power: int) -> None:
    """A power of two scales the parts exactly, though the squares of such weights under- or overflow."""
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(6))
    left, right = make_basis("dct", 24), make_basis("dct", 40)
    plain = decompose_matrix(weight, left, right, max_iter=30, tol=1e-5)
    scaled = decompose_matrix(weight * 2.0**power, left, right, max_iter=30, tol=1e-5)
    assert torch.equal(scaled.residuals, plain.residuals)
    assert torch.equal(scaled.u, plain.u * 2.0**power)


@pytest.mark.usefixtures("one_thread")
def test_a_long_run_in_float32_does_not_drift() -> None:
    """After 3000 steps u and v are the weight's parts as well as float32 allows: the carried residual does not lie."""
    weight = outlier_weight(40, 58)
    left, right = make_basis("qr", 40), make_basis("qr", 58)
    factors = decompose_matrix(weight, left, right, max_iter=3000, tol=0)
    relative = float(remainder(weight, factors, left, right).norm() / weight.norm())
    assert relative < 3e-7
    assert float(factors.residuals[-1]) < 3e-7


@pytest.mark.usefixtures("one_thread")
def test_converged_means_the_true_residual() -> None:
    weight = outlier_weight(40, 58)
    left, right = make_basis("qr", 40), make_basis("qr", 58)
    factors = decompose_matrix(weight, left, right, max_iter=4000, tol=1e-6)
    relative = float(remainder(weight, factors, left, right).norm() / weight.norm())
    assert factors.converged
    assert relative < 1e-6 * 1.05
    hopeless = decompose_matrix(weight, left, right, max_iter=600, tol=1e-9)
    assert not hopeless.converged
    assert hopeless.iterations == 600


def test_transposed_and_sliced_weights_are_read_right() -> None:
    base = torch.randn(60, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    left, right = make_basis("dct", 20), make_basis("dct", 60)
    weight = base.T[::2]
    kept = base.clone()
    factors = decompose_matrix(weight, left, right, max_iter=60, tol=1e-7)
    assert factors.converged
    torch.testing.assert_close(remainder(weight, factors, left, right), torch.zeros(20, 60).double(), rtol=0, atol=1e-5)
    assert torch.equal(base, kept)


def test_parameters_of_a_model_are_taken() -> None:
    weight = torch.nn.Parameter(torch.randn(12, 20, generator=torch.Generator().manual_seed(8)))
    factors = decompose_matrix(weight, make_basis("dct", 12), make_basis("dct", 20), max_iter=30, tol=1e-4)
    assert factors.converged
    assert not factors.u.requires_grad


def test_refusals() -> None:
    eight = DenseBasis(torch.eye(8))
    with pytest.raises(ValueError, match=r"\(8, 9\).*8 and 8"):
        decompose_matrix(torch.ones(8, 9), eight, eight, max_iter=1, tol=0)
    with pytest.raises(ValueError, match="negative"):
        decompose_matrix(torch.ones(8, 8), eight, eight, max_iter=1, tol=-1)
    with pytest.raises(ValueError, match="negative"):
        decompose_matrix(torch.ones(8, 8), eight, eight, max_iter=-1, tol=1)
    with pytest.raises(KQuantError, match="finite"):
        decompose_matrix(torch.full((8, 8), torch.nan), eight, eight, max_iter=1, tol=0)
    with pytest.raises(KQuantError, match="'greedy'"):
        decompose_matrix(torch.ones(8, 8), eight, eight, max_iter=1, tol=0, rule="gredy")
