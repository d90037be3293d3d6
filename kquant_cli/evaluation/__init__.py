"""What compression cost: the numbers of a dense model or a bundle, under the protocols that the field publishes.

A new task is one new file in `tasks/` and one line in its registry.
"""

from kquant_cli.evaluation.checkpoints import place_tasks
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.perplexity import PerplexityResult, perplexity
from kquant_cli.evaluation.result import Against, Estimate, Result
from kquant_cli.evaluation.tasks import GROUPS, TASKS, Task, select_tasks, split_names

__all__ = [
    "GROUPS",
    "TASKS",
    "Against",
    "Estimate",
    "EvalOptions",
    "PerplexityResult",
    "Result",
    "Task",
    "perplexity",
    "place_tasks",
    "select_tasks",
    "split_names",
]
