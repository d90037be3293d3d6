"""An allocation as the pipeline asks for it, and what the manifest says of it."""

import json

import pytest

from kquant_cli.allocation.level_counts import LEVELS, predicted_error
from kquant_cli.allocation.plan import plan_levels
from kquant_cli.checkpoint import Matrix
from kquant_cli.packing import row_bytes

MATRICES = [
    Matrix(f"h.{i}.{name}", f"h.{i}.{name}.weight", shape, transposed=False)
    for i in range(4)
    for name, shape in {"q": (64, 64), "up": (256, 64), "down": (64, 256)}.items()
]
SENSITIVITIES = {m.name: 10.0 ** (i % 3) for i, m in enumerate(MATRICES)}


def nbytes(matrix: Matrix, levels: int) -> int:
    rows, columns = matrix.shape
    return rows * row_bytes(columns, levels) + 8 * levels + 4 * rows


@pytest.mark.parametrize("bits", [2.0, 3.25, 4.5])
def test_the_average_is_kept_and_the_sensitive_get_more(bits: float) -> None:
    plan = plan_levels(MATRICES, SENSITIVITIES, bits, nbytes, source="data-free")
    stored = sum(nbytes(m, plan.levels()[m.name]) for m in MATRICES)
    weights = sum(m.shape[0] * m.shape[1] for m in MATRICES)
    assert plan.reached_bits == pytest.approx(8 * stored / weights)
    assert bits - 0.05 < plan.reached_bits <= bits
    levels = plan.levels()
    assert levels["h.0.q"] < levels["h.0.down"]


def test_equal_sensitivities_get_equal_levels_where_they_fit() -> None:
    matrices = MATRICES[::3]
    budget = 8 * sum(nbytes(m, 8) for m in matrices) / sum(m.shape[0] * m.shape[1] for m in matrices)
    plan = plan_levels(matrices, dict.fromkeys(SENSITIVITIES, 1.0), budget, nbytes, source="data-free")
    assert set(plan.levels().values()) == {8}
    assert plan.loss == pytest.approx(len(matrices) * predicted_error(8))


def test_a_matrix_that_has_no_choice_keeps_its_levels() -> None:
    plan = plan_levels(
        MATRICES,
        SENSITIVITIES,
        3.0,
        nbytes,
        source="data-free",
        levels=lambda m: (256,) if m.name == "h.0.q" else LEVELS,
    )
    assert plan.levels()["h.0.q"] == 256
    assert plan.reached_bits <= 3.0


def test_json_form_says_what_was_chosen_and_why() -> None:
    plan = plan_levels(MATRICES, SENSITIVITIES, 3.25, nbytes, source="text.txt")
    values = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert values["target_bits"] == 3.25
    assert values["reached_bits"] == plan.reached_bits
    assert values["sensitivities"] == "text.txt"
    assert sum(m["loss_share"] for m in values["matrices"].values()) == pytest.approx(1)
    assert list(values["matrices"]["h.0.up"]) == ["levels", "nbytes", "sensitivity", "loss_share"]


def test_a_target_below_the_fewest_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="above the budget"):
        plan_levels(MATRICES, SENSITIVITIES, 1.0, nbytes, source="data-free")
