"""The channel scale: the closed form against brute force, the search, and inputs that could break either."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kquant_cli.calibration import channel_scale, column_energy, predicted_loss, searched_scale, white_error_scale
from kquant_cli.calibration.channel_scaling import EXPONENTS, LIMIT

N = 24


def draw(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c, m = torch.randn(2, N, generator=generator, dtype=torch.float64).mul(spread).exp()
    return c, m


def sound(d: Tensor, size: int = N) -> None:
    assert d.shape == (size,) and d.dtype == torch.float32
    assert torch.isfinite(d).all() and (d > 0).all() and torch.equal(d.half().float(), d)
    assert d.max() <= LIMIT and d.min() >= 1 / LIMIT
    assert abs(d.double().log().mean()) < 1e-3


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.0, 0.0), (0.3, 0.7), (0.0, 0.0)])
def test_the_family(a: float, b: float):
    c, m = draw(0)
    d = channel_scale(c, m, a=a, b=b)
    sound(d)
    expected = (m**a / c**b) ** 0.25
    torch.testing.assert_close(d.double(), expected / expected.log().mean().exp(), rtol=1e-3, atol=0)


def test_column_energy_is_summed_over_all_layers_in_float64():
    weights = [torch.randn(50, 8).half(), torch.randn(3, 8)]
    expected = sum(weight.double().square().sum(0) for weight in weights)
    torch.testing.assert_close(column_energy(weights), expected, rtol=1e-12, atol=0)


def test_the_closed_form_reaches_the_bound_of_cauchy_and_schwarz():
    for seed in range(20):
        c, m = draw(seed)
        scale = white_error_scale(c, m)
        bound = float((c * m).sqrt().sum() ** 2 / (c.sum() * m.sum()))
        assert bound - 1e-12 <= scale.loss <= bound * (1 + 1e-5)
        assert scale.loss == predicted_loss(c, m, scale.d) and (scale.a, scale.b) == (1.0, 1.0)


def test_no_other_scale_is_better_in_random_trials():
    generator = torch.Generator().manual_seed(1)
    for seed in range(10):
        c, m = draw(seed, spread=1.5)
        best = white_error_scale(c, m)
        for trial in range(200):
            near = best.d * (1 + 0.3 * torch.rand(N, generator=generator)) if trial % 2 else best.d
            other = near if trial % 2 else torch.randn(N, generator=generator).exp()
            assert predicted_loss(c, m, other) >= best.loss * (1 - 1e-5)


def test_the_predicted_loss_is_that_of_a_white_error():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, N, generator=generator, dtype=torch.float64)
    inputs = torch.randn(60, N, generator=generator, dtype=torch.float64) * draw(3)[1]
    m, c = inputs.square().mean(0), column_energy([weight])

    def loss(d: Tensor) -> float:
        """E |(W^ - W) y|^2 over the diagonal of H, for an error of one size everywhere in W diag(d)."""
        energy = (weight * d.double()).square().sum() / N
        return float((m * energy / d.double() ** 2).sum())

    d = channel_scale(c, m, a=0.7, b=0.2)
    assert predicted_loss(c, m, d) == pytest.approx(loss(d) / loss(torch.ones(N)), rel=1e-12)
    assert predicted_loss(c, m, torch.ones(N)) == 1.0


def test_a_scale_that_does_not_help_is_not_used():
    c, _ = draw(4)
    scale = white_error_scale(c, 3 * c)  # m proportional to c: d = 1 is the closed form
    assert torch.equal(scale.d, torch.ones(N)) and (scale.loss, scale.a, scale.b) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("zeros", [1, N // 2, N - 1, N])
@pytest.mark.parametrize("which", ["moments", "columns", "both"])
def test_dead_channels_and_zero_columns(zeros: int, which: str):
    c, m = draw(5)
    if which != "columns":
        m[:zeros] = 0
    if which != "moments":
        c[-zeros:] = 0
    scale = white_error_scale(c, m)
    sound(scale.d)
    assert math.isfinite(scale.loss) and scale.loss <= 1
    sound(searched_scale(c, m, lambda d: predicted_loss(c, m, d)).d)


def test_a_dead_channel_is_small_but_not_lost():
    c, m = torch.ones(N, dtype=torch.float64), torch.ones(N, dtype=torch.float64)
    m[0] = 0
    d = channel_scale(c, m)
    assert d[0] / d[1] == pytest.approx(0.1, rel=0.02)  # (1e-4)^(1/4)


@pytest.mark.parametrize("largest", [1e-300, 1e-30, 1e30, 1e300])
def test_huge_and_tiny_numbers(largest: float):
    c, m = draw(6)
    torch.testing.assert_close(channel_scale(c * largest, m * largest), channel_scale(c, m), rtol=1e-3, atol=0)
    assert white_error_scale(c * largest, m / largest).loss == pytest.approx(white_error_scale(c, m).loss, rel=1e-5)


def test_huge_ranges_are_limited_where_float16_has_all_its_digits():
    m = torch.ones(1000, dtype=torch.float64)
    m[0] = 1e200
    for a, b in [*EXPONENTS, (8.0, 0.0), (0.0, 8.0)]:
        sound(channel_scale(m, m.flip(0), a=a, b=b), 1000)
    steps = torch.logspace(-150, 150, 101, dtype=torch.float64)
    sound(channel_scale(torch.ones(101), steps, a=40.0), 101)


def test_one_column_has_no_scale():
    d = channel_scale(torch.tensor([3.0]), torch.tensor([0.2], dtype=torch.float64))
    assert torch.equal(d, torch.ones(1))
    assert white_error_scale(torch.tensor([3.0]), torch.tensor([0.2])).loss == 1.0


@pytest.mark.parametrize(
    ("c", "m"),
    [
        (torch.ones(3), torch.ones(4)),
        (torch.ones(2, 2), torch.ones(2, 2)),
        (torch.ones(0), torch.ones(0)),
        (torch.tensor([1.0, -1.0]), torch.ones(2)),
        (torch.ones(2), torch.tensor([1.0, math.inf])),
        (torch.tensor([1.0, math.nan]), torch.ones(2)),
    ],
)
def test_what_is_no_sum_of_squares_is_refused(c: Tensor, m: Tensor):
    with pytest.raises(ValueError, match=r"expected two vectors|finite and not negative"):
        channel_scale(c, m)


def test_the_search_finds_the_exponents_that_were_put_in():
    c, m = draw(7)
    for a, b in EXPONENTS:
        wanted = channel_scale(c, m, a=a, b=b) if a else torch.ones(N)
        found = searched_scale(c, m, lambda d, wanted=wanted: 1 + float((d - wanted).square().sum()))
        assert (found.a, found.b) == (a, b) and torch.equal(found.d, wanted) and found.loss <= 1


def test_the_search_is_never_worse_than_no_scale_and_passes_over_what_is_not_finite():
    c, m = draw(8)
    alone = searched_scale(c, m, lambda d: 1.0 if (d == 1).all() else 2.0)
    assert torch.equal(alone.d, torch.ones(N)) and alone.loss == 1.0
    finite = searched_scale(c, m, lambda d: math.nan if d.max() > 2 else float(d.min()))
    assert finite.d.max() <= 2


def test_the_search_gains_on_a_coder_whose_error_is_not_white():
    """Round in groups of four columns with a step each: loud columns, which have small weights here, need the help."""
    generator = torch.Generator().manual_seed(9)
    c, m = draw(9, spread=1.5)
    weight = torch.randn(64, N, generator=generator, dtype=torch.float64) * c.sqrt()

    def loss(d: Tensor) -> float:
        scaled = (weight * d.double()).view(64, -1, 4)
        step = scaled.abs().amax(2, keepdim=True) / 3
        error = ((scaled / step).round() * step - scaled).view(64, N) / d.double()
        return float((error.square().sum(0) * m).sum())

    found = searched_scale(column_energy([weight]), m, loss)
    every = [loss(channel_scale(column_energy([weight]), m, a=a, b=b)) for a, b in EXPONENTS[1:]]
    assert found.loss == pytest.approx(min(every) / loss(torch.ones(N))) and found.loss < 0.9
