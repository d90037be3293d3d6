"""The vector form: every row on its own."""

import pytest
import torch

from kquant_cli.bases import make_basis
from kquant_cli.decomposition import decompose_vector
from kquant_cli.decomposition import vector as vector_form
from kquant_cli.errors import KQuantError


def mixed_rows() -> torch.Tensor:
    """Rows that need different numbers of steps: Gaussian, heavy-tailed, signs, a spike, zeros, very small."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 64, dtype=torch.float64, generator=generator)
    rows[1] = rows[1] ** 5
    rows[2] = 3 * rows[2].sign()
    rows[3] = 0
    rows[3, 5] = 1
    rows[4] = 0
    rows[5] *= 1e-200
    return rows


@pytest.mark.parametrize("rule", ["greedy", "alternating"])
def test_a_batch_equals_its_rows(rule: str) -> None:
    rows, basis = mixed_rows(), make_basis("qr", 64)
    batch = decompose_vector(rows, basis, max_iter=300, tol=1e-7, rule=rule)
    assert batch.residuals.shape == batch.coefficients.shape == batch.into_v.shape == (batch.iterations, 7)
    lengths = []
    for number in range(7):
        alone = decompose_vector(rows[number : number + 1], basis, max_iter=300, tol=1e-7, rule=rule)
        steps = alone.iterations
        lengths.append(steps)
        size = max(float(rows[number].abs().max()), 1e-300)
        torch.testing.assert_close(batch.u[number] / size, alone.u[0] / size, rtol=0, atol=1e-12)
        torch.testing.assert_close(batch.v[number] / size, alone.v[0] / size, rtol=0, atol=1e-12)
        torch.testing.assert_close(batch.residuals[:steps, number], alone.residuals[:, 0], rtol=1e-6, atol=1e-14)
        assert torch.equal(batch.into_v[:steps, number], alone.into_v[:, 0])
        assert not batch.coefficients[steps:, number].any()
        if steps:
            assert (batch.residuals[steps:, number] == batch.residuals[steps - 1, number]).all()
    assert lengths[2] == 1
    assert lengths[4] == 0
    assert len(set(lengths)) > 3
    assert batch.iterations == max(lengths)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_parts_and_the_residual_are_the_rows(dtype: torch.dtype) -> None:
    rows = torch.randn(9, 96, dtype=dtype, generator=torch.Generator().manual_seed(1))
    basis = make_basis("dct", 96)
    factors = decompose_vector(rows, basis, max_iter=10, tol=0)
    assert factors.u.dtype == dtype
    rest = rows.double() - factors.u.double() - factors.v.double() @ basis.dense().T
    relative = rest.norm(dim=1) / rows.double().norm(dim=1)
    torch.testing.assert_close(factors.residuals[-1].double(), relative, rtol=1e-4, atol=0)
    assert factors.iterations == 10
    assert not factors.converged


def test_rows_are_processed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, basis = mixed_rows(), make_basis("dct", 64)
    whole = decompose_vector(rows, basis, max_iter=100, tol=1e-6)
    monkeypatch.setattr(vector_form, "CPU_BLOCK", 2 * 64)
    blocks = decompose_vector(rows, basis, max_iter=100, tol=1e-6)
    torch.testing.assert_close(blocks.u, whole.u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(blocks.residuals, whole.residuals, rtol=1e-6, atol=1e-14)
    assert torch.equal(blocks.into_v, whole.into_v)
    assert blocks.converged == whole.converged


def test_converged_is_said_of_all_rows() -> None:
    rows, basis = mixed_rows(), make_basis("qr", 64)
    assert decompose_vector(rows, basis, max_iter=300, tol=1e-7).converged
    assert not decompose_vector(rows, basis, max_iter=5, tol=1e-7).converged
    assert decompose_vector(rows[2:3], basis, max_iter=5, tol=1e-7).converged


@pytest.mark.usefixtures("one_thread")
def test_a_long_run_in_float32_does_not_drift() -> None:
    rows = torch.randn(3, 60, generator=torch.Generator().manual_seed(2))
    rows[:, ::13] *= 40
    basis = make_basis("dct", 60)
    factors = decompose_vector(rows, basis, max_iter=2000, tol=0)
    rest = rows.double() - factors.u.double() - factors.v.double() @ basis.dense().T
    assert float((rest.norm(dim=1) / rows.double().norm(dim=1)).max()) < 4e-7


def test_no_rows_and_zero_rows() -> None:
    basis = make_basis("dct", 8)
    factors = decompose_vector(torch.zeros(3, 8), basis, max_iter=4, tol=0)
    assert factors.converged
    assert factors.residuals.shape == (0, 3)
    empty = decompose_vector(torch.zeros(0, 8), basis, max_iter=4, tol=0)
    assert empty.u.shape == (0, 8)


def test_refusals() -> None:
    basis = make_basis("dct", 8)
    with pytest.raises(ValueError, match=r"\(batch, 8\)"):
        decompose_vector(torch.ones(8), basis, max_iter=1, tol=0)
    with pytest.raises(KQuantError, match="alternating"):
        decompose_vector(torch.ones(1, 8), basis, max_iter=1, tol=0, rule="alternate")
    with pytest.raises(KQuantError, match="finite"):
        decompose_vector(torch.full((1, 8), torch.inf), basis, max_iter=1, tol=0)
