"""The decomposition against runs of the printed algorithm in plain numpy (golden/make_golden.py)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kquant_cli.bases import DenseBasis
from kquant_cli.decomposition import KashinFactors, decompose_matrix, decompose_vector

OWN = Path(__file__).parent / "golden"


def load(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def check(factors: KashinFactors, golden: dict[str, torch.Tensor], residuals: torch.Tensor) -> None:
    firm = residuals > 1e-5
    torch.testing.assert_close(factors.residuals[firm], residuals[firm], rtol=1e-9, atol=0)
    torch.testing.assert_close(factors.u, golden["u"], rtol=0, atol=1e-6)
    torch.testing.assert_close(factors.v, golden["v"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", ["gaussian_greedy", "heavy_greedy", "heavy_alternating"])
def test_agrees_with_plain_numpy(name: str, batch: int) -> None:
    golden = load(OWN / f"{name}.npz")
    left, right = DenseBasis(golden["q1"]), DenseBasis(golden["q2"])
    factors = decompose_matrix(golden["weight"], left, right, max_iter=30, tol=0, rule=name.split("_")[1], batch=batch)
    check(factors, golden, golden["residuals"])
    assert torch.equal(factors.into_v, golden["into_v"])
    torch.testing.assert_close(factors.coefficients, golden["coefficients"], rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["gauss_dct_64x96", "gauss_hadamard_64x128", "heavy_qr_48x80"])
def test_agrees_with_the_shared_golden_files(name: str, shared: Callable[[str], Path]) -> None:
    golden = load(shared(f"golden/{name}.npz"))
    left, right = DenseBasis(golden["q1"]), DenseBasis(golden["q2"])
    factors = decompose_matrix(golden["weight"], left, right, max_iter=len(golden["residual"]), tol=0)
    check(factors, golden, golden["residual"])
    assert torch.equal(factors.into_v, ~golden["took_u"])


def test_a_vector_is_a_matrix_of_one_row() -> None:
    """The matrix algorithm with a left basis of size 1 is the vector algorithm."""
    golden = load(OWN / "heavy_greedy.npz")
    one, right = DenseBasis(torch.ones(1, 1, dtype=torch.float64)), DenseBasis(golden["q2"])
    rows = golden["weight"]
    together = decompose_vector(rows, right, max_iter=25, tol=0)
    for number, row in enumerate(rows):
        alone = decompose_matrix(row[None], one, right, max_iter=25, tol=0)
        torch.testing.assert_close(together.residuals[:, number], alone.residuals, rtol=1e-8, atol=1e-13)
        torch.testing.assert_close(together.u[number], alone.u[0], rtol=0, atol=1e-9)
        assert torch.equal(together.into_v[:, number], alone.into_v)
