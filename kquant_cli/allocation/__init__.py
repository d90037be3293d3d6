"""How many levels each matrix gets when the bits asked for are an average: `--bits 3.25`.

options = {"layers.0.fc1": [Option(levels=8, nbytes=3210, error=0.02), ...], ...}     what each matrix may get
plan = plan_levels(weights, options, sensitivities, 3.25, source="data-free")         least predicted loss in the budget
plan.levels()["layers.0.fc1"]                                                         8

Mathematics on numbers alone: sensitivities are measured in calibration/, bytes and errors are told by the encoders.
"""

from kquant_cli.allocation.fused import fused_groups
from kquant_cli.allocation.knapsack import Choice, allocate
from kquant_cli.allocation.level_counts import LEVELS, possible_levels
from kquant_cli.allocation.plan import AllocationPlan, Allotted, Option, plan_levels

__all__ = [
    "LEVELS",
    "AllocationPlan",
    "Allotted",
    "Choice",
    "Option",
    "allocate",
    "fused_groups",
    "plan_levels",
    "possible_levels",
]
