"""An allocation as a run asks for it, and what the manifest says of it."""

import json

import pytest

from kquant_cli.allocation import LEVELS, Option, plan_levels
from kquant_cli.packing import row_bytes

SHAPES = {
    f"h.{i}.{name}": shape
    for i in range(4)
    for name, shape in {"q": (64, 64), "up": (256, 64), "down": (64, 256)}.items()
}
WEIGHTS = {name: rows * columns for name, (rows, columns) in SHAPES.items()}
SENSITIVITIES = {name: 10.0 ** (i % 3) for i, name in enumerate(SHAPES)}


def nbytes(name: str, levels: int) -> int:
    rows, columns = SHAPES[name]
    return rows * row_bytes(columns, levels) + 8 * levels + 4 * rows


def error(levels: int) -> float:
    return levels**-1.9


OPTIONS = {name: [Option(levels, nbytes(name, levels), error(levels)) for levels in LEVELS] for name in SHAPES}


@pytest.mark.parametrize("bits", [2.0, 3.25, 4.5])
def test_the_average_is_kept_and_the_sensitive_get_more(bits: float) -> None:
    plan = plan_levels(WEIGHTS, OPTIONS, SENSITIVITIES, bits, source="data-free")
    stored = sum(nbytes(name, levels) for name, levels in plan.levels().items())
    assert plan.reached_bits == pytest.approx(8 * stored / sum(WEIGHTS.values()))
    assert bits - 0.05 < plan.reached_bits <= bits
    levels = plan.levels()
    assert levels["h.0.q"] < levels["h.0.down"]


def test_equal_sensitivities_get_equal_levels_where_they_fit() -> None:
    weights = dict(list(WEIGHTS.items())[::3])
    budget = 8 * sum(nbytes(name, 8) for name in weights) / sum(weights.values())
    plan = plan_levels(weights, OPTIONS, dict.fromkeys(SENSITIVITIES, 1.0), budget, source="data-free")
    assert set(plan.levels().values()) == {8}
    assert plan.loss == pytest.approx(len(weights) * error(8))


def test_matrices_with_errors_of_their_own_get_what_serves_them() -> None:
    """Where levels buy nothing, none are bought."""
    useless = {"h.0.q": [Option(levels, nbytes("h.0.q", levels), 0.1) for levels in LEVELS]}
    plan = plan_levels(WEIGHTS, OPTIONS | useless, dict.fromkeys(SENSITIVITIES, 1.0), 4.0, source="data-free")
    assert plan.levels()["h.0.q"] == 2
    assert min(levels for name, levels in plan.levels().items() if name != "h.0.q") >= 8


def test_a_matrix_that_has_no_choice_keeps_its_levels() -> None:
    fixed = {"h.0.q": [Option(256, nbytes("h.0.q", 256), error(256))]}
    plan = plan_levels(WEIGHTS, OPTIONS | fixed, SENSITIVITIES, 3.0, source="data-free")
    assert plan.levels()["h.0.q"] == 256
    assert plan.reached_bits <= 3.0


def test_json_form_says_what_was_chosen_and_why() -> None:
    plan = plan_levels(WEIGHTS, OPTIONS, SENSITIVITIES, 3.25, source="text.txt")
    values = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert values["target_bits"] == 3.25
    assert values["reached_bits"] == plan.reached_bits
    assert values["sensitivities"] == "text.txt"
    assert sum(m["loss_share"] for m in values["matrices"].values()) == pytest.approx(1)
    assert list(values["matrices"]["h.0.up"]) == ["levels", "nbytes", "sensitivity", "loss_share"]


def test_a_target_below_the_fewest_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="above the budget"):
        plan_levels(WEIGHTS, OPTIONS, SENSITIVITIES, 1.0, source="data-free")
