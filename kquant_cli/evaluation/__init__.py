"""What compression cost: perplexity of a dense model or a bundle. A new task is one entry in `TASKS`."""

from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.perplexity import PerplexityResult, perplexity
from kquant_cli.evaluation.tasks import TASKS, Task, select_tasks

__all__ = ["TASKS", "EvalOptions", "PerplexityResult", "Task", "perplexity", "select_tasks"]
