"""How many levels each matrix gets when the bits asked for are an average: `--bits 3.25`.

sensitivities = {"model.layers.0.mlp.down_proj": 0.7, ...}                     one number a matrix (calibration/)
plan = plan_levels(matrices, sensitivities, 3.25, nbytes, source="data-free")  least predicted loss within the budget
plan.levels()["model.layers.0.mlp.down_proj"]                                  24

Mathematics on numbers: the caller tells the bytes and the errors of a matrix at every number of levels.
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
