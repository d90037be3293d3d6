"""How many levels each matrix gets when the bits asked for are an average: `--bits 3.25`.

sensitivities = load_or_measure(checkpoint, matrices, "data-free", ...)        one number a matrix
plan = plan_levels(matrices, sensitivities, 3.25, nbytes, source="data-free")  least predicted loss within the budget
plan.levels()["model.layers.0.mlp.down_proj"]                                  24

Nothing here knows the encoders: the caller tells the bytes and the errors of a matrix at every number of levels.
`measure_sensitivity` (sensitivity.py) and `load_or_measure` (cache.py) need transformers; what is named here does not.
"""

from kquant_cli.allocation.knapsack import Choice, allocate
from kquant_cli.allocation.level_counts import LEVELS, MEASURED, predicted_error
from kquant_cli.allocation.plan import AllocationPlan, Allotted, plan_levels

__all__ = [
    "LEVELS",
    "MEASURED",
    "AllocationPlan",
    "Allotted",
    "Choice",
    "allocate",
    "plan_levels",
    "predicted_error",
]
