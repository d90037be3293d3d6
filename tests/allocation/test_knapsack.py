"""The allocation against brute force, its budget to the byte, and how it changes with the budget."""

from itertools import pairwise, product
from math import fsum, inf

import numpy as np
import pytest

from kquant_cli.allocation import knapsack
from kquant_cli.allocation.knapsack import Choice, allocate
from kquant_cli.allocation.level_counts import LEVELS
from kquant_cli.packing import row_bytes


def random_choices(seed: int, matrices: int, options: int, largest: int, kind: str) -> list[Choice]:
    """Losses that fall with the size along a convex curve, along a ragged one, or do not depend on it."""
    draw = np.random.default_rng(seed)
    choices = []
    for matrix in range(matrices):
        sizes = np.sort(draw.integers(1, largest + 1, options))
        losses = np.exp(2 * draw.normal()) * np.exp(-3 * sizes / largest)
        losses *= {"convex": np.ones(options), "ragged": np.exp(draw.normal(size=options))}.get(kind, 1 / losses)
        losses = draw.random(options) if kind == "any" else losses
        choices.append(Choice(str(matrix), 100, tuple(map(int, sizes)), tuple(map(float, losses))))
    return choices


def all_combinations(choices: list[Choice]) -> list[tuple[int, float]]:
    """(bytes, loss) of each."""
    combinations = product(*(range(len(choice.sizes)) for choice in choices))
    return [(size(choices, picks), loss(choices, picks)) for picks in combinations]


def loss(choices: list[Choice], picks: tuple[int, ...]) -> float:
    return fsum(c.losses[p] for c, p in zip(choices, picks, strict=True))


def size(choices: list[Choice], picks: tuple[int, ...]) -> int:
    return sum(c.sizes[p] for c, p in zip(choices, picks, strict=True))


def model(blocks: int, hidden: int, inner: int, keys: int, seed: int = 0) -> list[Choice]:
    """The matrices of a Llama of that size with sensitivities that differ by factors."""
    draw = np.random.default_rng(seed)
    shapes = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)] + [(inner, hidden)] * 2
    choices = []
    for number in range(blocks):
        for rows, columns in [*shapes, (hidden, inner)]:
            sensitivity = float(np.exp(1.5 * draw.normal()))
            sizes = tuple(rows * row_bytes(columns, k) + 8 * k + 4 * rows + 4 * columns for k in LEVELS)
            losses = tuple(sensitivity * k**-1.9 for k in LEVELS)
            choices.append(Choice(f"{number}.{len(choices)}", rows * columns, sizes, losses))
    return choices


@pytest.mark.parametrize("kind", ["convex", "ragged", "any"])
@pytest.mark.parametrize("largest", [6, 40, 10**6])
def test_equals_brute_force_at_every_budget(largest: int, kind: str) -> None:
    for seed in range(6):
        choices = random_choices(seed, matrices=5, options=4, largest=largest, kind=kind)
        combinations = all_combinations(choices)
        least, most = sum(min(c.sizes) for c in choices), sum(max(c.sizes) for c in choices)
        tight = {least, least + 1, most - 1, most, *np.linspace(least, most, 12).astype(int).tolist()}
        for budget in sorted(budget for budget in tight if least <= budget <= most):
            picks = allocate(choices, budget)
            assert size(choices, picks) <= budget, seed
            best = min(loss for size, loss in combinations if size <= budget)
            assert loss(choices, picks) == pytest.approx(best, rel=1e-12), seed


def test_equals_a_plain_dynamic_program_on_more_matrices() -> None:
    """A table over every number of bytes: no bounds, no fronts."""
    for seed in range(20):
        choices = random_choices(seed, matrices=30, options=8, largest=50, kind="ragged")
        least, most = sum(min(c.sizes) for c in choices), sum(max(c.sizes) for c in choices)
        budget = int(np.random.default_rng(seed).integers(least, most))
        best = np.zeros(budget + 1)
        for c in choices:
            moved = [np.r_[np.full(s, inf), best[: budget + 1 - s]] + e for s, e in zip(c.sizes, c.losses, strict=True)]
            best = np.min(moved, axis=0)
        picks = allocate(choices, budget)
        assert size(choices, picks) <= budget, seed
        assert loss(choices, picks) == pytest.approx(best[budget], rel=1e-12), seed


@pytest.mark.parametrize("bits", [1.1, 2, 3.25, 4, 7.5])
def test_no_single_upgrade_fits_in_what_is_left(bits: float) -> None:
    choices = model(30, 576, 1536, 192)
    weights = sum(c.weights for c in choices)
    budget = int(bits * weights / 8)
    picks = allocate(choices, budget)
    left = budget - size(choices, picks)
    assert left >= 0
    assert 8 * left / weights < 1e-3
    for choice, pick in zip(choices, picks, strict=True):
        for other, other_loss in zip(choice.sizes, choice.losses, strict=True):
            assert other_loss >= choice.losses[pick] or other - choice.sizes[pick] > left


def test_more_budget_is_never_a_larger_loss() -> None:
    choices = random_choices(3, matrices=12, options=6, largest=30, kind="ragged")
    least, most = sum(min(c.sizes) for c in choices), sum(max(c.sizes) for c in choices)
    losses = [loss(choices, allocate(choices, budget)) for budget in range(least, most + 2)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] == pytest.approx(fsum(min(c.losses) for c in choices), rel=1e-15)


def test_is_deterministic_among_equals() -> None:
    choices = [Choice(str(i), 8, (1, 2, 2, 3), (4.0, 2.0, 2.0, 1.0)) for i in range(9)]
    first = allocate(choices, 17)
    assert all(allocate(choices, 17) == first for _ in range(3))
    assert 2 not in first  # of equal options the first


def test_few_states_keep_the_budget_and_come_near_the_best() -> None:
    choices = model(8, 576, 1536, 192)
    budget = int(3.25 * sum(c.weights for c in choices) / 8)
    best, coarse = allocate(choices, budget), allocate(choices, budget, states=16)
    assert size(choices, coarse) <= budget
    assert loss(choices, best) <= loss(choices, coarse) <= 1.01 * loss(choices, best)


def test_even_one_state_keeps_the_budget() -> None:
    for seed in range(40):
        choices = random_choices(seed, matrices=9, options=6, largest=30, kind="any")
        least, most = sum(min(c.sizes) for c in choices), sum(max(c.sizes) for c in choices)
        for budget in range(least, most, 7):
            picks = allocate(choices, budget, states=1 + seed % 3)
            assert size(choices, picks) <= budget, seed
            assert loss(choices, picks) >= loss(choices, allocate(choices, budget)) - 1e-12, seed


def test_is_within_a_hair_of_the_bound_of_convex_hulls() -> None:
    """The linear relaxation, where options of a matrix may be mixed, bounds every choice from below."""
    choices = model(30, 576, 1536, 192)
    budget = int(3.25 * sum(c.weights for c in choices) / 8)
    prices = np.logspace(-12, -3, 2000)
    losses, sizes = np.array([c.losses for c in choices]), np.array([c.sizes for c in choices])
    bounds = [(losses + p * sizes).min(1).sum() - p * budget for p in prices]
    assert max(bounds) <= loss(choices, allocate(choices, budget)) <= 1.001 * max(bounds)


def test_a_large_model_takes_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states that the dynamic program looks at, of all matrices: no time of this machine's."""
    looked_at = []
    pareto = knapsack._pareto
    monkeypatch.setattr(knapsack, "_pareto", lambda size, *rest: looked_at.append(len(size)) or pareto(size, *rest))
    choices = model(126, 16384, 53248, 1024)  # 882 matrices, 19 options each
    budget = int(3.25 * sum(c.weights for c in choices) / 8)
    picks = allocate(choices, budget)
    assert sum(looked_at) < 5e6  # without the bounds 882 times 19 options of 8192 states: 137 million
    assert 0 <= budget - size(choices, picks) < budget / 10**5


def test_a_budget_below_the_smallest_options_is_refused() -> None:
    with pytest.raises(ValueError, match="7 bytes, above the budget of 6"):
        allocate([Choice("a", 8, (3, 5), (1.0, 0.5)), Choice("b", 8, (9, 4), (1.0, 2.0))], 6)


def test_edges() -> None:
    assert allocate([], 0) == ()
    assert allocate([Choice("a", 8, (3,), (1.0,))], 3) == (0,)
    assert allocate([Choice("a", 8, (3, 2), (1.0, 1.0))], 9) == (1,)  # no reason to take more bytes
    with pytest.raises(ValueError, match="finite"):
        Choice("a", 8, (3,), (inf,))
    with pytest.raises(ValueError, match="2 sizes and 1 losses"):
        Choice("a", 8, (3, 4), (1.0,))
