"""The Gaussian-optimal levels: published values, and the conditions that define them."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from kquant_cli.codebooks import lloyd_max


def squared_error(levels: np.ndarray) -> float:
    """E (x - nearest level)^2 for x from N(0, 1), by quadrature."""
    borders = np.concatenate([[-12], (levels[1:] + levels[:-1]) / 2, [12]])
    return sum(
        quad(lambda x, level=level: (x - level) ** 2 * norm.pdf(x), low, high)[0]
        for level, low, high in zip(levels, borders[:-1], borders[1:], strict=True)
    )


@pytest.mark.parametrize(
    ("levels", "error"), [(1, 1.0), (2, 0.3634), (3, 0.1902), (4, 0.1175), (8, 0.03455), (16, 0.00950), (32, 0.00250)]
)
def test_published_errors(levels: int, error: float) -> None:
    assert squared_error(lloyd_max(levels).numpy()) == pytest.approx(error, rel=2e-3)


def test_two_and_four_levels() -> None:
    assert lloyd_max(2).tolist() == pytest.approx([-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)], rel=1e-14)
    assert lloyd_max(4).tolist() == pytest.approx([-1.5104, -0.4528, 0.4528, 1.5104], abs=5e-5)


@pytest.mark.parametrize("levels", [2, 3, 5, 16, 64, 256])
def test_each_level_is_the_mean_of_its_interval(levels: int) -> None:
    x = lloyd_max(levels)
    assert x.dtype == torch.float64
    assert torch.equal(x, -x.flip(0))
    borders = torch.cat([torch.tensor([-torch.inf]), (x[1:] + x[:-1]) / 2, torch.tensor([torch.inf])]).numpy()
    for level, low, high in list(zip(x.tolist(), borders[:-1], borders[1:], strict=True))[: (levels + 1) // 2]:
        mean = (norm.pdf(low) - norm.pdf(high)) / (norm.cdf(high) - norm.cdf(low))
        assert level == pytest.approx(mean, abs=1e-9)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one level"):
        lloyd_max(0)
