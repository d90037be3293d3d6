"""The divergence against its definition in float64, and against its second order where it is too small for that."""

import pytest
import scipy.stats
import torch

from kquant_cli.divergence import kl_divergence


def logits(seed: int, spread: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return spread * torch.randn(50, 300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("step", [1e-2, 1.0, 30.0])
def test_is_the_relative_entropy_of_the_softmaxes(step: float) -> None:
    first = logits(0, 5.0)
    second = first + logits(1, step)
    expected = scipy.stats.entropy(first.softmax(1).numpy(), second.softmax(1).numpy(), axis=1)
    assert kl_divergence(first, second).numpy() == pytest.approx(expected, rel=1e-8)
    assert kl_divergence(first.float(), second.float()).numpy() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("step", "dtype"), [(1e-7, torch.float64), (1e-5, torch.float64), (1e-3, torch.float32)])
def test_keeps_its_digits_where_it_is_tiny(step: float, dtype: torch.dtype) -> None:
    first = logits(0, 20.0, dtype)
    second = first + logits(1, step, dtype)
    p, change = first.double().softmax(1), second.double() - first.double()
    second_order = 0.5 * ((p * change**2).sum(1) - (p * change).sum(1) ** 2)  # KL of a small change of logits
    assert kl_divergence(first, second).double().numpy() == pytest.approx(second_order.numpy(), rel=1e-2)


def test_numbers_too_large_for_an_exponential_are_no_infinity() -> None:
    first = torch.tensor([[0.0, -200.0], [0.0, 1.0]])
    moved = torch.tensor([[0.0, 200.0], [0.0, 1.0]])
    assert kl_divergence(first, moved).tolist() == pytest.approx([200.0, 0.0], abs=1e-12)
